-- append(attempt, token, first seq, chunk, chunk, …): what follows the tape's last entry; what stands already is skipped.
-- KEYS: tape. -> {'ok'} | {'gap', last seq, or -1 where the attempt itself is not there} | {'overtaken'} | {'ended'} | {'gone'}
-- The token tells two attempts of one number apart: a failover that lost an attempt lets its number be given again.
local at_attempt, at_seq, kind = last()
if not at_attempt then return {'gone'} end
if kind == 'end' then return {'ended'} end
local attempt, first = tonumber(ARGV[1]), tonumber(ARGV[3])
if at_attempt > attempt then return {'overtaken'} end
if at_attempt < attempt then return {'gap', -1} end
if not owns(ARGV[1], ARGV[2]) then return {'overtaken'} end
if at_seq + 1 < first then return {'gap', at_seq} end
for i = 4 + math.max(0, at_seq + 1 - first), #ARGV do
  add(attempt, first + i - 4, 'chunk', ARGV[i])
end
return {'ok'}
