// Command follow reads a job's tape: its text on stdout as it arrives, everything else on stderr.
//
//	go build -o follow . && ./follow JOB [AFTER]
//
// AFTER is the id of the last entry that you have (0-0: everything). Exit codes as `tokentape follow` has them:
// 0 completed, 1 ended otherwise, 2 wrong usage or a cursor beyond the end, 3 no such job, 5 Redis not reachable.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
)

var (
	jobID   = regexp.MustCompile(`^job_[0-9a-f]{32}$`)
	entryID = regexp.MustCompile(`^\d+-\d+$`)

	errBeyond = errors.New("the cursor is beyond its end")
)

// entry is one entry of a tape.
type entry struct {
	id, kind string
	data     []byte
}

// data is what this program reads of an entry's JSON, whatever its kind.
type data struct {
	Format  int    `json:"format"` // queued
	Reason  string `json:"reason"` // attempt
	Choices []struct {
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
	} `json:"choices"` // chunk
	Status string `json:"status"` // end
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

func main() {
	after := "0-0"
	if len(os.Args) == 3 {
		after = os.Args[2]
	}
	if len(os.Args) < 2 || len(os.Args) > 3 || !jobID.MatchString(os.Args[1]) || !entryID.MatchString(after) {
		fail(2, "usage: follow JOB [AFTER]")
	}
	job := os.Args[1]
	redis, err := dial(setting("TOKENTAPE_REDIS_URL", "redis://127.0.0.1:6379/0"))
	if err != nil {
		fail(5, "TOKENTAPE_REDIS_URL: %v", err)
	}
	defer redis.Close()
	end, err := follow(redis, fmt.Sprintf("%s:{%s}:%s:tape", setting("TOKENTAPE_NAMESPACE", "tokentape"), job[4:6], job), after)
	switch {
	case errors.Is(err, errBeyond):
		fail(2, "%s: %v", job, err)
	case err != nil:
		fail(1, "%s: %v", job, err)
	case end == nil:
		fail(3, "%s: no such job", job)
	case end.Error != nil:
		fail(1, "\n%s: %s", end.Status, end.Error.Message)
	case end.Status != "completed":
		fail(1, "\n%s", end.Status)
	}
	fmt.Fprintln(os.Stderr, "\ncompleted")
}

// follow prints the text of a tape after an entry, and returns its end, or nil where there is no such tape.
func follow(redis *conn, tape, last string) (*data, error) {
	// Wherever it goes on: the first entry says whether this program can read the tape at all.
	head, err := edge(redis, "XRANGE", tape, "-", "+")
	if head == nil || err != nil {
		return nil, err
	}
	if queued, err := parse(*head); err != nil {
		return nil, err
	} else if queued.Format != 1 {
		return nil, fmt.Errorf("format %d is not known here", queued.Format)
	}
	var reply any
	for {
		if reply == nil { // nothing came, or nothing was asked for yet: is there more to wait for?
			newest, err := edge(redis, "XREVRANGE", tape, "+", "-")
			if newest == nil || err != nil {
				return nil, err
			}
			if newest.kind == "end" && newest.id == last {
				return parse(*newest)
			}
			if newest.kind == "end" && after(last, newest.id) {
				return nil, errBeyond
			}
		}
		if reply, err = redis.do("XREAD", "BLOCK", "5000", "COUNT", "500", "STREAMS", tape, last); err != nil {
			return nil, err
		}
		if reply == nil {
			continue
		}
		for _, one := range decode(reply.([]any)[0].([]any)[1]) {
			if !follows(last, one.id) {
				return nil, fmt.Errorf("entry %s does not follow %s", one.id, last)
			}
			last = one.id
			read, err := parse(one)
			if err != nil || one.kind == "end" {
				return read, err
			}
			show(one, read)
		}
	}
}

// edge reads the first entry of a range: nil where there is none.
func edge(redis *conn, command, tape, from, to string) (*entry, error) {
	rows, err := redis.do(command, tape, from, to, "COUNT", "1")
	if err != nil {
		return nil, err
	}
	if entries := decode(rows); len(entries) > 0 {
		return &entries[0], nil
	}
	return nil, nil
}

func show(one entry, read *data) {
	switch one.kind {
	case "attempt":
		if attempt, _ := numbers(one.id); attempt > 1 { // what was printed so far is void
			fmt.Fprintf(os.Stderr, "\nstarts over (%s)\n", read.Reason)
		}
	case "chunk":
		if len(read.Choices) > 0 {
			fmt.Print(read.Choices[0].Delta.Content)
		}
	}
}

// after says whether an id is above another.
func after(id, other string) bool {
	attempt, seq := numbers(id)
	otherAttempt, otherSeq := numbers(other)
	return attempt > otherAttempt || attempt == otherAttempt && seq > otherSeq
}

// follows says whether an entry is the next one: after a-n comes a-(n+1), or the first entry of a higher attempt.
func follows(before, id string) bool {
	attempt, seq := numbers(before)
	nextAttempt, nextSeq := numbers(id)
	if nextAttempt == attempt {
		return nextSeq == seq+1
	}
	return nextAttempt > attempt && nextSeq == 0
}

func numbers(id string) (attempt, seq int) {
	fmt.Sscanf(id, "%d-%d", &attempt, &seq)
	return attempt, seq
}

// decode makes entries of the rows of XREAD and XREVRANGE: [id, [name, value, name, value]].
func decode(rows any) []entry {
	var entries []entry
	for _, row := range rows.([]any) {
		pair := row.([]any)
		one := entry{id: pair[0].(string)}
		fields := pair[1].([]any)
		for i := 0; i+1 < len(fields); i += 2 {
			switch value := fields[i+1].(string); fields[i] {
			case "kind":
				one.kind = value
			case "data":
				one.data = []byte(value)
			}
		}
		entries = append(entries, one)
	}
	return entries
}

func parse(one entry) (*data, error) {
	var read data
	if err := json.Unmarshal(one.data, &read); err != nil {
		return nil, fmt.Errorf("entry %s: %w", one.id, err)
	}
	return &read, nil
}

func setting(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}

func fail(code int, format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(code)
}
