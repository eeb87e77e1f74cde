-- audit(first, last, most listed): open jobs that stand nowhere: in no queue, with no owner, not delayed, not ended.
-- Only while the queues are short enough to be read; a lost one is found when they are.
-- KEYS: open, owners, ended, queues x 3, suspects x 3, delayed x 3. -> {number of open jobs looked at, id, …} | {-1}
local listed = 0
for i = 4, 9 do listed = listed + redis.call('LLEN', KEYS[i]) end
if listed > tonumber(ARGV[3]) then return {-1} end
local waits = {}
for i = 4, 9 do
  for _, id in ipairs(redis.call('LRANGE', KEYS[i], 0, -1)) do waits[id] = true end
end
local ids = redis.call('ZRANGE', KEYS[1], ARGV[1], ARGV[2])
local out = {#ids}
for _, id in ipairs(ids) do
  if not waits[id] and redis.call('HEXISTS', KEYS[2], id) == 0 and not redis.call('ZSCORE', KEYS[3], id) then
    local delayed = false
    for i = 10, 12 do delayed = delayed or redis.call('ZSCORE', KEYS[i], id) end
    if not delayed then out[#out + 1] = id end
  end
end
return out
