-- Managed by moat.inference.

-- Service moat_refuse: answers a request that the rules refuse. It reads the body first, for an answer to a client that is still
-- sending ends in a reset, and a proxy in between turns that into an error of its own.
local MOST = 64 * 1024 * 1024
local PERMISSION, LIMIT, SERVER = "permission_error", "rate_limit_error", "server_error"
local REFUSALS = {
  ["deny-identity"] = {403, PERMISSION, "The client certificate names no client of this gateway, or has expired."},
  ["deny-address"] = {403, PERMISSION, "This client may not call from this address."},
  ["deny-model"] = {403, PERMISSION, "This client may not use this model."},
  ["deny-path"] = {404, "not_found_error", "There is nothing at this path."},
  ["deny-method"] = {405, "invalid_request_error", "This path does not take this method."},
  ["deny-concurrent"] = {429, LIMIT, "This client has too many requests at once."},
  ["deny-rate"] = {429, LIMIT, "This client sends requests too fast."},
}
local NOT_READY = {503, SERVER, "The model server is not ready."}
local BODY = '{"error": {"message": "%s", "type": "%s", "param": null, "code": "%s"}}'

core.register_service("moat_refuse", "http", function(applet)
  local read = 0
  repeat
    local part = applet:receive(16384)
    read = read + #(part or "")
  until not part or #part == 0 or read > MOST
  local rule = applet:get_var("txn.rule")
  local refusal = REFUSALS[rule]
  local status, kind, message = table.unpack(refusal or NOT_READY)
  local body = BODY:format(message, kind, refusal and rule or "gateway")
  applet:set_status(status)
  applet:add_header("Content-Type", "application/json")
  applet:add_header("Content-Length", tostring(#body))
  if rule == "deny-method" then
    applet:add_header("Allow", applet:get_var("txn.methods"))
  elseif rule == "deny-concurrent" then
    applet:add_header("Retry-After", "1")
  elseif rule == "deny-rate" then
    applet:add_header("Retry-After", applet:get_var("txn.wait"))
  elseif status == 503 then
    applet:add_header("Retry-After", "5")
  end
  applet:start_response()
  applet:send(body)
end)

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
