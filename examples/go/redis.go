package main

// As much of a Redis client as two commands need, so that this example builds with nothing but Go. In a program of
// yours take a real one (github.com/redis/go-redis has XRead and XRevRangeN): it connects again by itself.

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
)

type conn struct {
	net.Conn
	in *bufio.Reader
}

// dial connects to redis://[user[:password]@]host[:port][/db], or rediss:// for TLS.
func dial(address string) (*conn, error) {
	at, err := url.Parse(address)
	if err != nil || (at.Scheme != "redis" && at.Scheme != "rediss") {
		return nil, errors.New("expected redis://host:port/db") // without the URL: it may hold a password
	}
	port := at.Port()
	if port == "" {
		port = "6379"
	}
	host := net.JoinHostPort(at.Hostname(), port)
	var raw net.Conn
	if at.Scheme == "rediss" {
		raw, err = tls.Dial("tcp", host, nil)
	} else {
		raw, err = net.Dial("tcp", host)
	}
	if err != nil {
		return nil, err
	}
	c := &conn{raw, bufio.NewReader(raw)}
	if password, given := at.User.Password(); given {
		login := []string{"AUTH", password}
		if user := at.User.Username(); user != "" {
			login = []string{"AUTH", user, password}
		}
		if _, err := c.do(login...); err != nil {
			return nil, err
		}
	}
	if db := strings.Trim(at.Path, "/"); db != "" && db != "0" {
		if _, err := c.do("SELECT", db); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// do sends one command and reads its reply: string, int64, []any or nil.
func (c *conn) do(args ...string) (any, error) {
	var out strings.Builder
	fmt.Fprintf(&out, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(&out, "$%d\r\n%s\r\n", len(arg), arg)
	}
	if _, err := io.WriteString(c, out.String()); err != nil {
		return nil, err
	}
	return c.reply()
}

func (c *conn) reply() (any, error) {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimRight(line, "\r\n")
	kind, rest := line[0], line[1:]
	switch kind {
	case '+':
		return rest, nil
	case '-':
		return nil, errors.New(rest)
	}
	n, err := strconv.ParseInt(rest, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("not a reply of Redis: %q", line)
	}
	switch {
	case kind == ':':
		return n, nil
	case n < 0:
		return nil, nil
	case kind == '$':
		text := make([]byte, n+2)
		_, err := io.ReadFull(c.in, text)
		return string(text[:n]), err
	case kind == '*':
		items := make([]any, n)
		for i := range items {
			if items[i], err = c.reply(); err != nil {
				return nil, err
			}
		}
		return items, nil
	}
	return nil, fmt.Errorf("not a reply of Redis: %q", line)
}
