-- notice(job id, most kept): tell the workers that a job was cancelled, memory or not. KEYS: notices. -> 1
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'job', ARGV[1])
return 1
