-- charge(tokens per minute, tokens): what an answered call has used. KEYS: the upstream's limits.
local now = now_ms()
local owed_until = math.max(now, tonumber(redis.call('HGET', KEYS[1], 'tokens') or '0')) + tonumber(ARGV[2]) * 60000 / tonumber(ARGV[1])
redis.call('HSET', KEYS[1], 'tokens', string.format('%.3f', owed_until))
redis.call('PEXPIRE', KEYS[1], 3600000 + math.ceil(owed_until - now))
return 1
