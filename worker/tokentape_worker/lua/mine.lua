-- mine(worker): what the worker's own list holds and the worker owns. KEYS: owners, the worker's list.
-- -> {id, delivery, queue index, …}
local out = {}
for _, id in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
  local worker, delivery, queue = owner_of(KEYS[1], id)
  if worker == ARGV[1] then
    out[#out + 1] = id
    out[#out + 1] = delivery
    out[#out + 1] = queue
  else
    redis.call('LREM', KEYS[2], 0, id)
  end
end
return out
