-- The server's own clock, in milliseconds: no other clock takes part in a decision.
local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end
local function text(ms) return string.format('%.0f', ms) end
