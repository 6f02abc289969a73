// Command masque-client opens tunnels through masque-go and prints, as lines of JSON, what came of them.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"log"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/quic-go/masque-go"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/yosida95/uritemplate/v3"
)

// A Report is what became of one target.
type Report struct {
	Target string `json:"target"`
	// Status is the answer's; 0 if there was none.
	Status      int    `json:"status"`
	ProxyStatus string `json:"proxy_status"`
	Error       string `json:"error"`
	// Echoed are the sizes that came back whole, in bytes.
	Echoed []int `json:"echoed"`
	// Digest is the SHA-256 of what was fetched, Bytes how much that was, and Seconds how long it took.
	Digest  string  `json:"digest"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

func main() {
	template := flag.String("template", "", "URI template of the relay")
	authority := flag.String("authority", "", "file of the trusted authority")
	token := flag.String("token", "", "bearer token")
	sizes := flag.String("sizes", "", "payloads to send, in bytes, with commas between them")
	path := flag.String("fetch", "", "path of a page to fetch from the target over HTTP/3, and nothing else")
	dial := flag.String("dial", "", "where the relay is reached, if not at the template's host and port")
	serve := flag.String("serve", "", "be an HTTP/3 origin of this directory instead")
	chain := flag.String("certificate", "", "certificate chain of the origin")
	key := flag.String("key", "", "its key")
	flag.Parse()
	if *serve != "" {
		check(origin(*serve, *chain, *key))
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	pem, err := os.ReadFile(*authority)
	check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	relay, err := uritemplate.New(*template)
	check(err)
	address, _, _ := strings.Cut(strings.TrimPrefix(*template, "https://"), "/")
	if *dial != "" {
		address = *dial
	}
	// The largest packet that the library tries, at once: payloads of 1,350 bytes need it.
	conn, err := quic.DialAddr(ctx, address,
		&tls.Config{RootCAs: roots, NextProtos: []string{http3.NextProtoH3}},
		&quic.Config{EnableDatagrams: true, InitialPacketSize: 1452})
	check(err)
	defer conn.CloseWithError(0, "")
	client, err := (&masque.Transport{}).NewClientConn(conn)
	check(err)
	// All tunnels share the connection, and live side by side.
	out := json.NewEncoder(os.Stdout)
	for _, target := range flag.Args() {
		request, err := masque.NewRequest(ctx, relay, target)
		check(err)
		request.Header().Set("Authorization", "Bearer "+*token)
		tunnel, answer, err := client.Dial(request)
		report := Report{Target: target, Echoed: []int{}}
		if answer != nil {
			report.Status, report.ProxyStatus = answer.StatusCode, header(answer, "Proxy-Status")
		}
		if err != nil {
			report.Error = err.Error()
			check(out.Encode(report))
			continue
		}
		defer tunnel.Close()
		if *path != "" {
			check(report.fetch(ctx, tunnel, roots, "https://"+target+*path))
			check(out.Encode(report))
			continue
		}
		for _, text := range strings.Split(*sizes, ",") {
			size, err := strconv.Atoi(text)
			check(err)
			if echoed(tunnel, size) {
				report.Echoed = append(report.Echoed, size)
			}
		}
		check(out.Encode(report))
	}
}

func header(answer *http.Response, name string) string {
	return strings.Join(answer.Header.Values(name), ", ")
}

// echoed sends a payload until it comes back, as the relay has to learn first what the path carries.
func echoed(tunnel *masque.Conn, size int) bool {
	payload, buffer := make([]byte, size), make([]byte, 2048)
	for at := range payload {
		payload[at] = byte(rand.Uint32())
	}
	for range 20 {
		if _, err := tunnel.WriteTo(payload, nil); err != nil {
			log.Printf("%d bytes: %v", size, err)
		}
		check(tunnel.SetReadDeadline(time.Now().Add(250 * time.Millisecond)))
		for {
			length, _, err := tunnel.ReadFrom(buffer)
			if err != nil {
				break
			}
			if bytes.Equal(buffer[:length], payload) {
				return true
			}
		}
	}
	return false
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
