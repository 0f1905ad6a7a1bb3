# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A tiny CUDA call on every device that CUDA shows: the only proof that module, libraries and GPU work together.

On each device memory is allocated, filled by the GPU and copied back. A program of its own, standard library alone, for a broken
driver may hang or crash whoever calls it: the module gpu_verify hands it to a Python of its own, on standard input. CUDA_VISIBLE_DEVICES
says which GPU or MIG instance is meant. The functions are those of NVIDIA's "CUDA Driver API"; the device's primary context is used,
for the signature of cuCtxCreate differs between versions.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

LIBRARY = "libcuda.so.1"
SECONDS = 120
WORDS = 4096
# no pattern that memory has by itself
PATTERN = 0x600DCAFE
UNSIGNED = ctypes.c_uint
POINTER = ctypes.c_uint64


class CudaError(Exception):
    """A call failed, or gave what it should not."""


class Cuda:
    """The driver's library; loaded is an object that has its functions."""

    def __init__(self, loaded: Any) -> None:
        self._library = loaded

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; raise CudaError with the error's name when it is not CUDA_SUCCESS."""
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise CudaError(f"the library has no {name}") from error
        status = int(function(*arguments))
        if status:
            raise CudaError(f"{name} gave {status} ({self.error_name(status)})")

    def error_name(self, status: int) -> str:
        """Return the name of an error, such as CUDA_ERROR_NO_DEVICE."""
        text = ctypes.c_char_p()
        known = self._library.cuGetErrorName(status, ctypes.byref(text)) == 0
        return text.value.decode("ascii", "replace") if known and text.value else "no name"

    def number(self, name: str, *arguments: Any) -> int:
        """Return the int that a function gives through its first argument."""
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def text(self, name: str, device: int) -> str:
        """Return the text that a function gives of a device."""
        buffer = ctypes.create_string_buffer(256)
        self.call(name, buffer, ctypes.c_int(len(buffer)), ctypes.c_int(device))
        return buffer.value.decode("utf-8", "replace")

    def round_trip(self, device: int) -> None:
        """Fill memory of the device with a pattern and copy it back; raise CudaError when it does not come back."""
        context, address = ctypes.c_void_p(), POINTER()
        size = WORDS * ctypes.sizeof(UNSIGNED)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ctypes.c_int(device))
        try:
            self.call("cuCtxSetCurrent", context)
            self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
            try:
                back = (UNSIGNED * WORDS)()
                self.call("cuMemsetD32_v2", address, UNSIGNED(PATTERN), ctypes.c_size_t(WORDS))
                self.call("cuMemcpyDtoH_v2", back, address, ctypes.c_size_t(size))
                wrong = sum(word != PATTERN for word in back)
                if wrong:
                    raise CudaError(f"{wrong} of {WORDS} words came back wrong")
            finally:
                self.call("cuMemFree_v2", address)
        finally:
            self.call("cuDevicePrimaryCtxRelease_v2", ctypes.c_int(device))

    def devices(self) -> list[dict[str, Any]]:
        """Return, for each device, ordinal, name, PCI slot and fault (empty when memory came back right)."""
        found = []
        for ordinal in range(self.number("cuDeviceGetCount")):
            entry = {"ordinal": ordinal, "name": "", "slot": "", "fault": ""}
            try:
                device = self.number("cuDeviceGet", ctypes.c_int(ordinal))
                entry["name"] = self.text("cuDeviceGetName", device)
                entry["slot"] = self.text("cuDeviceGetPCIBusId", device).lower()
                self.round_trip(device)
            except CudaError as error:
                entry["fault"] = str(error)
            found.append(entry)
        return found


def probe(loaded: Any) -> dict[str, Any]:
    """Return {"api": version of the CUDA API such as 13000, "devices": [...], "fault": text, empty when all is well}."""
    cuda = Cuda(loaded)
    answer: dict[str, Any] = {"api": 0, "devices": [], "fault": ""}
    try:
        cuda.call("cuInit", UNSIGNED(0))
        answer["api"] = cuda.number("cuDriverGetVersion")
        answer["devices"] = cuda.devices()
        faults = [f"device {d['ordinal']}: {d['fault']}" for d in answer["devices"] if d["fault"]]
        answer["fault"] = "; ".join(faults) or ("" if answer["devices"] else "CUDA shows no device")
    except CudaError as error:
        answer["fault"] = str(error)
    return answer


def main(arguments: Sequence[str]) -> int:
    """Probe once, print the answer as JSON; arguments are the library and the seconds that it may take, both optional."""
    library = arguments[0] if arguments else LIBRARY
    # the default action ends the process even inside of a call that does not come back
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(arguments[1]) if len(arguments) > 1 else SECONDS)
    try:
        answer = probe(ctypes.CDLL(library))
    except OSError as error:
        answer = {"api": 0, "devices": [], "fault": f"the library of the CUDA driver cannot be loaded: {error}"}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if answer["fault"] else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
