-- settle(data, retention_ms, only where overdue): end a job from outside, whatever its worker does: it is fenced at once.
-- KEYS: tape, result, request. -> {'ok'} | {'ended', status} | {'gone'} | {'early', deadline_at_ms, priority}
local attempt, seq, kind, entry = last()
if not attempt then return {'gone'} end
if kind == 'end' then return {'ended', cjson.decode(entry).status} end
if ARGV[3] == '1' then
  local first = cjson.decode(at('0-1'))
  if now_ms() < first.deadline_at_ms then return {'early', text(first.deadline_at_ms), first.priority} end
end
add(attempt + 1, 0, 'end', with(ARGV[1], '"attempts":' .. text(attempt) .. ',"ended_at_ms":' .. text(now_ms())))
expire(tonumber(ARGV[2]))
return {'ok'}
