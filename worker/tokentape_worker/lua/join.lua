-- join(worker, lease_ms): a new worker's lease. KEYS: leases. -> 1
redis.call('ZADD', KEYS[1], text(now_ms() + tonumber(ARGV[2])), ARGV[1])
return 1
