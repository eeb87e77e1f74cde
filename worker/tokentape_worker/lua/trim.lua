-- trim(retention_ms): the ended jobs whose tapes are gone. KEYS: ended, RQ's registries of ended jobs. -> how many
-- RQ trims its registries in its own workers' maintenance, and where somebody looks into them: here nobody else may.
local now = now_ms()
for i = 2, #KEYS do redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', text(math.floor(now / 1000))) end
return redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(now - tonumber(ARGV[1])))
