-- submit(data, request, sha256, timeout_ms, margin_ms): the tape's first entry, once.
-- KEYS: tape, request. -> {'new' | 'same' | 'ended' | 'conflict', deadline_at_ms}
local attempt, seq, kind = last()
if attempt then
  local first = cjson.decode(at('0-1') or '{}')
  if first.request_sha256 ~= ARGV[3] then return {'conflict', '0'} end
  return {kind == 'end' and 'ended' or 'same', text(first.deadline_at_ms)}
end
local now = now_ms()
local deadline = now + tonumber(ARGV[4])
add(0, 1, 'queued', with(ARGV[1], '"submitted_at_ms":' .. text(now) .. ',"deadline_at_ms":' .. text(deadline)))
redis.call('SET', KEYS[2], ARGV[2])
expire(tonumber(ARGV[4]) + tonumber(ARGV[5]))
return {'new', text(deadline)}
