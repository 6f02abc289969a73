package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/quic-go/masque-go"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// Packets that fit a datagram of the connection around them.
var inner = &quic.Config{InitialPacketSize: 1200, DisablePathMTUDiscovery: true}

// fetch gets a page over HTTP/3 inside the tunnel.
func (report *Report) fetch(ctx context.Context, tunnel *masque.Conn, roots *x509.CertPool, url string) error {
	socket := &quic.Transport{Conn: tunnel}
	defer socket.Close()
	transport := &http3.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		QUICConfig:      inner,
		Dial: func(ctx context.Context, _ string, tls *tls.Config, config *quic.Config) (*quic.Conn, error) {
			return socket.Dial(ctx, tunnel.RemoteAddr(), tls, config)
		},
	}
	defer transport.Close()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	start := time.Now()
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	digest := sha256.New()
	report.Bytes, err = io.Copy(digest, answer.Body)
	report.Seconds, report.Digest = time.Since(start).Seconds(), hex.EncodeToString(digest.Sum(nil))
	return err
}

// origin serves the directory over HTTP/3 until its standard input ends, and prints its port.
func origin(directory, chain, key string) error {
	certificate, err := tls.LoadX509KeyPair(chain, key)
	if err != nil {
		return err
	}
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	server := &http3.Server{
		Handler:    http.FileServer(http.Dir(directory)),
		TLSConfig:  http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{certificate}}),
		QUICConfig: inner,
	}
	fmt.Println(socket.LocalAddr().(*net.UDPAddr).Port)
	go server.Serve(socket)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
