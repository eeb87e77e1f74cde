-- trim(retention_ms): the ended jobs whose tapes are gone. KEYS: ended. -> how many
return redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(now_ms() - tonumber(ARGV[1])))
