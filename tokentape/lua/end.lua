-- end(attempt, token, seq, data, result or '', retention_ms): the last entry, by the worker of the attempt.
-- KEYS: tape, result, request. -> {'ok'} | {'already'} | {'ended'} | {'gap', last seq or -1} | {'overtaken'} | {'gone'}
local at_attempt, at_seq, kind = last()
if not at_attempt then return {'gone'} end
local attempt, seq = tonumber(ARGV[1]), tonumber(ARGV[3])
if kind == 'end' then
  if at_attempt == attempt and at_seq == seq and owns(ARGV[1], ARGV[2]) then return {'already'} end
  return {'ended'}
end
if at_attempt > attempt then return {'overtaken'} end
if at_attempt < attempt then return {'gap', -1} end
if not owns(ARGV[1], ARGV[2]) then return {'overtaken'} end
if at_seq + 1 ~= seq then return {'gap', at_seq} end
add(attempt, seq, 'end', with(ARGV[4], '"ended_at_ms":' .. text(now_ms())))
if ARGV[5] ~= '' then redis.call('SET', KEYS[2], ARGV[5]) end
expire(tonumber(ARGV[6]))
return {'ok'}
