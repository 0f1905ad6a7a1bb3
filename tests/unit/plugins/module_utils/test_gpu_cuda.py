# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The CUDA call against doubles of the CUDA driver's library: an object in Python, and where gcc is there a shared library in C too.

Neither computes on a GPU; both keep the "device memory" in the process, as the functions of the CUDA Driver API would see it.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.moat.inference.plugins.module_utils import gpu_cuda

SOURCE = r"""
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <unistd.h>
typedef unsigned long long ptr;
static int is(const char *w) { const char *e = getenv("DOUBLE_FAILS"); return e && !strcmp(e, w); }
int cuGetErrorName(int s, const char **t) { *t = s == 100 ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_UNKNOWN"; return s > 999; }
int cuInit(unsigned f) { if (is("hang")) for (;;) pause(); if (is("crash")) abort(); return is("cuInit") ? 100 : 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = is("none") ? 0 : 2; return 0; }
int cuDeviceGet(int *d, int o) { *d = o + 10; return 0; }
int cuDeviceGetName(char *t, int n, int d) { snprintf(t, n, "Double %d", d); return 0; }
int cuDeviceGetPCIBusId(char *t, int n, int d) { snprintf(t, n, "0000:0%d:00.0", d - 9); return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)1; return d == 11 && is("second") ? 100 : 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { return 0; }
int cuCtxSetCurrent(void *c) { return 0; }
int cuMemAlloc_v2(ptr *p, size_t n) { *p = (ptr)malloc(n); return 0; }
int cuMemsetD32_v2(ptr p, unsigned v, size_t n) { for (size_t i = 0; i < n; i++) ((unsigned *)p)[i] = v; if (is("wrong")) *(unsigned *)p ^= 1; return 0; }
int cuMemcpyDtoH_v2(void *h, ptr p, size_t n) { memcpy(h, (void *)p, n); return 0; }
int cuMemFree_v2(ptr p) { free((void *)p); return 0; }
"""


class PythonDouble:
    """The same in Python: one device, whose memory is a buffer; fails maps a function to its status."""

    def __init__(self, **fails: int) -> None:
        self.fails = fails
        self.calls: list[str] = []
        self.memory = (ctypes.c_uint * gpu_cuda.WORDS)()

    def __getattr__(self, name: str) -> Any:
        if name in self.fails and self.fails[name] < 0:
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            self.calls.append(name)
            return self.fails.get(name) or self.answer(name, *arguments)

        return function

    def answer(self, name: str, *arguments: Any) -> int:
        first = getattr(arguments[0], "_obj", arguments[0])
        if name == "cuGetErrorName":
            arguments[1]._obj.value = b"CUDA_ERROR_NO_DEVICE"
        elif name == "cuDriverGetVersion":
            first.value = 13000
        elif name == "cuDeviceGetCount":
            first.value = 1
        elif name in ("cuDeviceGetName", "cuDeviceGetPCIBusId"):
            first.value = b"0000:0A:00.0"
        elif name == "cuMemAlloc_v2":
            first.value = ctypes.addressof(self.memory)
        elif name == "cuMemsetD32_v2":
            self.memory[:] = [arguments[1].value] * arguments[2].value
        elif name == "cuMemcpyDtoH_v2":
            ctypes.memmove(arguments[0], arguments[1].value, arguments[2].value)
        return 0


def test_memory_comes_back() -> None:
    double = PythonDouble()
    entry = {"ordinal": 0, "name": "0000:0A:00.0", "slot": "0000:0a:00.0", "fault": ""}
    assert gpu_cuda.probe(double) == {"api": 13000, "devices": [entry], "fault": ""}
    assert set(double.memory) == {gpu_cuda.PATTERN}
    assert double.calls[-2:] == ["cuMemFree_v2", "cuDevicePrimaryCtxRelease_v2"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuInit", "cuInit gave 100 (CUDA_ERROR_NO_DEVICE)"),
        ("cuDeviceGetCount", "cuDeviceGetCount gave 100"),
        ("cuDeviceGet", "device 0: cuDeviceGet gave"),
        ("cuDevicePrimaryCtxRetain", "device 0: cuDevicePrimaryCtxRetain gave"),
        ("cuMemAlloc_v2", "device 0: cuMemAlloc_v2 gave"),
        ("cuMemsetD32_v2", "device 0: cuMemsetD32_v2 gave"),
        ("cuMemcpyDtoH_v2", "device 0: cuMemcpyDtoH_v2 gave"),
    ],
)
def test_each_call_that_fails_is_named(name: str, said: str) -> None:
    assert said in gpu_cuda.probe(PythonDouble(**{name: 100}))["fault"]


def test_a_library_that_lacks_a_function_is_told() -> None:
    assert "the library has no cuMemAlloc_v2" in gpu_cuda.probe(PythonDouble(cuMemAlloc_v2=-1))["fault"]


def test_what_was_taken_is_given_back_after_a_failure() -> None:
    double = PythonDouble(cuMemcpyDtoH_v2=700)
    gpu_cuda.probe(double)
    assert (
        double.calls[-2:] == ["cuMemFree_v2", "cuDevicePrimaryCtxRelease_v2"] or "cuGetErrorName" in double.calls[-3:]
    )
    assert {"cuMemFree_v2", "cuDevicePrimaryCtxRelease_v2"} <= set(double.calls)


def program(library: str, fails: str = "", seconds: int = 20) -> tuple[int, dict[str, Any]]:
    """Run the program as gpu_verify does: on the standard input of a Python of its own."""
    source = Path(str(gpu_cuda.__file__)).read_text()
    done = subprocess.run(
        [sys.executable, "-I", "-", library, str(seconds)],
        input=source,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DOUBLE_FAILS": fails},
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}


def test_no_library_is_told() -> None:
    status, answer = program("libno-such-cuda.so.1")
    assert status == 1 and "cannot be loaded" in answer["fault"]


def test_a_shared_library_is_called_as_cuda_is(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        # without a compiler the double in Python stands alone
        assert gpu_cuda.probe(PythonDouble())["fault"] == ""
        return
    (tmp_path / "double.c").write_text(SOURCE)
    library = str(tmp_path / "libcuda.so.1")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, str(tmp_path / "double.c")], check=True)
    status, answer = program(library)
    assert status == 0 and answer["fault"] == "" and answer["api"] == 13000
    assert [d["slot"] for d in answer["devices"]] == ["0000:01:00.0", "0000:02:00.0"]
    assert program(library, "cuInit")[1]["fault"] == "cuInit gave 100 (CUDA_ERROR_NO_DEVICE)"
    assert program(library, "none")[1]["fault"] == "CUDA shows no device"
    assert program(library, "second")[1]["fault"].startswith("device 1: cuDevicePrimaryCtxRetain gave 100")
    assert "1 of 4096 words came back wrong" in program(library, "wrong")[1]["fault"]
    assert program(library, "hang", 1) == (-14, {})
    assert program(library, "crash") == (-6, {})
