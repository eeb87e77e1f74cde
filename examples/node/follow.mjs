// Follows a job's tape from Node: its text on stdout as it arrives, everything else on stderr.
//
//   npm install && node follow.mjs JOB [AFTER]
//
// AFTER is the id of the last entry that you have (0-0: everything). Exit codes as `tokentape follow` has them:
// 0 completed, 1 ended otherwise, 2 wrong usage or a cursor beyond the end, 3 no such job.

import { createClient } from "redis"

const [jobId, after = "0-0"] = process.argv.slice(2)
if (!/^job_[0-9a-f]{32}$/.test(jobId ?? "") || !/^\d+-\d+$/.test(after)) {
  console.error("usage: node follow.mjs JOB [AFTER]")
  process.exit(2)
}
const namespace = process.env.TOKENTAPE_NAMESPACE ?? "tokentape"
const tape = `${namespace}:{${jobId.slice(4, 6)}}:${jobId}:tape`
const numbers = id => id.split("-").map(Number)

// A blocking read keeps the connection to itself: one client for each follower, or one reader for all tapes.
const client = createClient({ url: process.env.TOKENTAPE_REDIS_URL ?? "redis://127.0.0.1:6379/0" })
client.on("error", error => console.error(`redis: ${error.message}`)) // it connects again by itself
await client.connect()
const code = await follow(after)
await client.close()
process.exit(code)

async function follow(last) {
  // Wherever it goes on: the first entry says whether this program can read the tape at all.
  const [head] = await client.xRange(tape, "-", "+", { COUNT: 1 })
  if (!head) return noSuchJob()
  const { format } = JSON.parse(head.message.data)
  if (format !== 1) throw new Error(`${jobId}: format ${format} is not known here`)

  for (let reply = null; ; ) {
    if (!reply) {
      // Nothing came, or nothing was asked for yet. Is there more to wait for?
      const [newest] = await client.xRevRange(tape, "+", "-", { COUNT: 1 })
      if (!newest) return noSuchJob()
      if (newest.message.kind === "end" && !isAfter(newest.id, last)) {
        if (newest.id === last) return verdict(JSON.parse(newest.message.data))
        console.error(`${jobId}: ${last} is beyond its end, ${newest.id}`)
        return 2
      }
    }
    reply = await client.xRead({ key: tape, id: last }, { BLOCK: 5000, COUNT: 500 })
    for (const { id, message } of reply?.[0].messages ?? []) {
      if (!follows(last, id)) throw new Error(`${jobId}: entry ${id} does not follow ${last}`)
      last = id
      const data = JSON.parse(message.data)
      if (message.kind === "attempt" && numbers(id)[0] > 1) console.error(`\nstarts over (${data.reason})`)
      if (message.kind === "chunk") process.stdout.write(data.choices[0]?.delta.content ?? "")
      if (message.kind === "end") return verdict(data)
    }
  }
}

function isAfter(id, other) {
  const [attempt, seq] = numbers(id), [otherAttempt, otherSeq] = numbers(other)
  return attempt > otherAttempt || (attempt === otherAttempt && seq > otherSeq)
}

// After a-n comes a-(n+1), or the first entry of a higher attempt.
function follows(before, id) {
  const [attempt, seq] = numbers(before), [nextAttempt, nextSeq] = numbers(id)
  return nextAttempt === attempt ? nextSeq === seq + 1 : nextAttempt > attempt && nextSeq === 0
}

function verdict(end) {
  console.error(`\n${end.status}${end.error ? `: ${end.error.message}` : ""}`)
  return end.status === "completed" ? 0 : 1
}

function noSuchJob() {
  console.error(`${jobId}: no such job`)
  return 3
}
