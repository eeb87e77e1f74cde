-- admit(requests per minute, tokens per minute, longest wait in ms): when the next call to an upstream may begin.
-- KEYS: the upstream's limits: requests, tokens -> the time in ms at which the budget is whole again.
-- -> {ms to wait, 1 where that moment is now reserved for the caller | 0 where it is too far away}
local now = now_ms()
local per_minute, tokens_per_minute = tonumber(ARGV[1]), tonumber(ARGV[2])
local wait = 0
local free_at = now
if per_minute > 0 then
  -- Evenly spaced (GCRA), with one second's worth that may come at once.
  local interval = 60000 / per_minute
  free_at = math.max(now, tonumber(redis.call('HGET', KEYS[1], 'requests') or '0'))
  wait = free_at - now - math.max(0, 1000 - interval)
  free_at = free_at + interval
end
if tokens_per_minute > 0 then
  wait = math.max(wait, tonumber(redis.call('HGET', KEYS[1], 'tokens') or '0') - now)
end
wait = math.ceil(math.max(0, wait))
if wait > tonumber(ARGV[3]) then return {wait, 0} end
if per_minute > 0 then redis.call('HSET', KEYS[1], 'requests', string.format('%.3f', free_at)) end
redis.call('PEXPIRE', KEYS[1], 3600000)
return {wait, 1}
