-- notice(job id, most kept): tell the workers that a job was cancelled, memory or not. Where it waits for a retry, the
-- wait is over: the next sweep takes it out of the books. KEYS: notices, delayed. -> 1
redis.call('ZADD', KEYS[2], 'XX', 0, ARGV[1])
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'job', ARGV[1])
return 1
