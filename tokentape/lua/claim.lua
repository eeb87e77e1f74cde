-- claim(delivery, try, token, reason, budget, data, retention_ms): open the next attempt, or say why not.
-- KEYS: tape, result, request.
-- -> {'run', attempt, spent, token, started_at_ms} | {'gone'} | {'ended', status} | {'older', delivery}
-- The same delivery, try and token again get the same attempt (a lost reply); an older one is refused. So is another
-- token: that is another run of the delivery, whose answer must not be mixed into this one.
local attempt, seq, kind, entry = last()
if not attempt then return {'gone'} end
if kind == 'end' then return {'ended', cjson.decode(entry).status} end
local delivery, try = tonumber(ARGV[1]), tonumber(ARGV[2])
local spent = 0
if attempt > 0 then
  local before = cjson.decode(at(string.format('%.0f-0', attempt)))
  local its_delivery, its_try = tonumber(before.delivery), before.try
  if its_delivery == delivery and its_try == try and before.token == ARGV[3] then
    return {'run', attempt, before.spent, before.token, text(before.started_at_ms)}
  end
  if its_delivery > delivery or (its_delivery == delivery and its_try >= try) then
    return {'older', before.delivery}
  end
  spent = before.spent
  -- What was given back on purpose costs nothing; a crash or a broken stream does.
  if ARGV[4] ~= 'drained' and ARGV[4] ~= 'wait' then spent = spent + 1 end
end
local function finish(status, error)
  add(attempt + 1, 0, 'end', with('{"status":"' .. status .. '","usage":null,"timings":null,"error":' .. error .. '}',
    '"attempts":' .. text(attempt) .. ',"ended_at_ms":' .. text(now_ms())))
  expire(tonumber(ARGV[7]))
  return {'ended', status}
end
local now = now_ms()
if now >= cjson.decode(at('0-1')).deadline_at_ms then
  return finish('expired', '{"type":"expired","message":"the deadline passed before an answer was complete","retryable":true}')
end
if spent >= tonumber(ARGV[5]) then
  return finish('failed', '{"type":"worker_lost","message":"every attempt ended with its worker or in mid-stream ('
    .. text(spent) .. ' of ' .. ARGV[5] .. ')","retryable":true}')
end
add(attempt + 1, 0, 'attempt', with(ARGV[6], '"spent":' .. text(spent) .. ',"started_at_ms":' .. text(now)))
return {'run', attempt + 1, spent, ARGV[3], text(now)}
