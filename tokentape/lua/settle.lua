-- settle(data, retention_ms, only where overdue, format): end a job from outside, whatever its worker does: it is fenced
-- at once. A tape of another format is left alone: what its end looks like is not known here.
-- KEYS: tape, result, request.
-- -> {'ok', priority} | {'ended', status, priority} | {'gone'} | {'early', deadline_at_ms, priority}
--    | {'format', the tape's, as JSON}
local attempt, seq, kind, entry = last()
if not attempt then return {'gone'} end
local first = cjson.decode(at('0-1') or '{"deadline_at_ms":0,"priority":"default"}')
if first.format ~= nil and first.format ~= tonumber(ARGV[4]) then return {'format', cjson.encode(first.format)} end
if kind == 'end' then return {'ended', cjson.decode(entry).status, first.priority} end
if ARGV[3] == '1' and now_ms() < first.deadline_at_ms then
  return {'early', text(first.deadline_at_ms), first.priority}
end
add(attempt + 1, 0, 'end', with(ARGV[1], '"attempts":' .. text(attempt) .. ',"ended_at_ms":' .. text(now_ms())))
expire(tonumber(ARGV[2]))
return {'ok', first.priority}
