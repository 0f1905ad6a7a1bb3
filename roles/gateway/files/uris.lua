-- Managed by moat.inference.
-- Converter moat_uris: the URIs among the subject alternative names (RFC 5280, 4.2.1.6) of a certificate, for the log.
-- Its input is hexadecimal, for a conversion of binary to string ends at the first zero byte.

local function header(der, at)
  local tag, size = der:byte(at), der:byte(at + 1)
  at = at + 2
  if size >= 0x80 then
    local count = size - 0x80
    size = 0
    for _ = 1, count do
      size = size * 256 + der:byte(at)
      at = at + 1
    end
  end
  return tag, size, at
end

core.register_converters("moat_uris", function(hex)
  local der = hex:gsub("%x%x", function(pair) return string.char(tonumber(pair, 16)) end)
  local _, at = der:find("\x06\x03\x55\x1d\x11", 1, true)
  if not at then
    return ""
  end
  local tag, size, value = header(der, at + 1)
  if tag == 0x01 then -- critical
    tag, size, value = header(der, value + size)
  end
  tag, size, value = header(der, value) -- the sequence inside the octet string
  local last, uris = value + size, {}
  while value < last do
    tag, size, value = header(der, value)
    if tag == 0x86 then
      uris[#uris + 1] = der:sub(value, value + size - 1)
    end
    value = value + size
  end
  return table.concat(uris, " ")
end)
