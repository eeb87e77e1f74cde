-- renew(worker, lease_ms): only while the entry stands; reaped or condemned means dead for good. KEYS: leases. -> 1 | 0
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) == 0 then return 0 end
redis.call('ZADD', KEYS[1], text(now_ms() + tonumber(ARGV[2])), ARGV[1])
return 1
