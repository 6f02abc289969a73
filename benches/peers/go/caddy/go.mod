module caddy-with-forwardproxy

go 1.25

require (
	github.com/caddyserver/caddy/v2 v2.10.2
	github.com/caddyserver/forwardproxy v0.0.0-20251013200746-bb364cc53204
)
