-- due(most): what a sweep has to look at, by the server's clock. KEYS: open, leases, delayed x 3.
-- -> {overdue open jobs, workers whose lease is past, delayed jobs that are due x 3}
local now, most = text(now_ms()), tonumber(ARGV[1])
local out = {}
for i = 1, #KEYS do out[i] = redis.call('ZRANGEBYSCORE', KEYS[i], '-inf', now, 'LIMIT', 0, most) end
return out
