// control is a coordination server for tests. The protocol with the nodes is that of Tailscale's own
// test package; the policy, the ends of nodes and the record of their messages are added here.
//
// Nodes join with the auth key and get the tags that they ask for. Rules allow TCP ports from one tag
// to another. With a changed policy file every node gets a new network map after POST /reload. A node
// that registers as ephemeral is removed when it logs out, or some time after its last connection.
//
// The encrypted connections of nodes end here, and not in the test package, so that every request is
// recorded before anything else reads it: each path, its header names, and its body as it was sent.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"tailscale.com/control/controlhttp/controlhttpserver"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
	"tailscale.com/types/opt"
)

const (
	domain    = "tailnet.test"
	keepAlive = 50 * time.Second
	// Since this capability version a streaming request only reads: a node sends its endpoints and
	// host information in requests of their own.
	readOnlyStreams = 68
	maxBodyBytes    = 1 << 20
)

type rule struct {
	From, To string   // tags
	Ports    []uint16 // TCP
}

type control struct {
	server     *testcontrol.Server
	machineKey key.MachinePrivate // of this server
	policyFile string
	recordDir  string
	absence    time.Duration // after which an ephemeral node without a connection is removed

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced at each change
	removed   map[key.NodePublic]bool
	ephemeral map[key.NodePublic]bool
	streams   map[tailcfg.NodeID]int
	timers    map[tailcfg.NodeID]*time.Timer          // of ephemeral nodes without a connection
	questions map[tailcfg.NodeID]*tailcfg.PingRequest // to ask with the next network map
	records   int
}

func main() {
	log.SetFlags(log.Lmicroseconds)
	listen := flag.String("listen", "", "address and port for nodes")
	admin := flag.String("admin", "", "address and port for the test")
	derpMap := flag.String("derp-map", "", "file with the map of relays, JSON")
	policy := flag.String("policy", "", "file with a list of rules, JSON")
	authKey := flag.String("auth-key", "", "file with the key that every node needs")
	record := flag.String("record", "", "folder for the requests of nodes")
	absence := flag.Duration("absence", time.Minute, "after it an ephemeral node is removed")
	flag.Parse()

	server := &testcontrol.Server{
		ExplicitBaseURL: "http://" + *listen,
		MagicDNSDomain:  domain,
		TagOwners:       map[string][]string{},
		RequireAuthKey:  strings.TrimSpace(string(read(*authKey))),
		// Tagged nodes share one owner. It is the worse case: nodes of one owner may use each other's
		// peer API.
		AllNodesSameUser:        true,
		DefaultNodeCapabilities: &tailcfg.NodeCapMap{},
		DERPMap:                 new(tailcfg.DERPMap),
	}
	check(json.Unmarshal(read(*derpMap), server.DERPMap))
	c := &control{
		server: server, machineKey: key.NewMachine(),
		policyFile: *policy, recordDir: *record, absence: *absence,
		changed:   make(chan struct{}),
		removed:   map[key.NodePublic]bool{},
		ephemeral: map[key.NodePublic]bool{},
		streams:   map[tailcfg.NodeID]int{},
		timers:    map[tailcfg.NodeID]*time.Timer{},
		questions: map[tailcfg.NodeID]*tailcfg.PingRequest{},
	}
	server.AltMapStream = c.serveMap
	go func() { log.Fatal(http.ListenAndServe(*admin, c.orders())) }()
	log.Printf("serving nodes at %s", *listen)
	log.Fatal(http.ListenAndServe(*listen, c.record(false, c.plainRequests())))
}

// plainRequests handles what comes before a connection is encrypted.
func (c *control) plainRequests() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /key", func(w http.ResponseWriter, _ *http.Request) {
		keys := tailcfg.OverTLSPublicKeyResponse{
			LegacyPublicKey: key.NewMachine().Public(), PublicKey: c.machineKey.Public(),
		}
		answer(w, keys)
	})
	mux.HandleFunc("POST /ts2021", func(w http.ResponseWriter, r *http.Request) {
		conn, err := controlhttpserver.AcceptHTTP(r.Context(), w, r, c.machineKey, nil)
		if err != nil {
			log.Printf("no encrypted connection: %v", err)
			return
		}
		defer conn.Close()
		(&http2.Server{}).ServeConn(conn, &http2.ServeConnOpts{
			Context:    peerContext{r.Context(), conn.Peer()},
			BaseConfig: &http.Server{Handler: c.record(true, c.encryptedRequests())},
		})
	})
	return mux
}

// encryptedRequests handles the messages of nodes. Other paths answer 404: they are in the record.
func (c *control) encryptedRequests() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /machine/register", c.register)
	mux.Handle("POST /machine/map", c.server)
	mux.HandleFunc("POST /c2n/{number}", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

// peerContext gives the test package the key of a node's machine under its own private name.
type peerContext struct {
	context.Context
	peer key.MachinePublic
}

func (c peerContext) Value(name any) any {
	if fmt.Sprintf("%T", name) == "testcontrol.peerMachinePublicContextKey" {
		return c.peer
	}
	return c.Context.Value(name)
}

// request is the record of one request of a node, in NUMBER-ADDRESS.json.
type request struct {
	At        float64 // seconds since 1970
	Encrypted bool
	Method    string
	Path      string
	Query     []string // names
	Headers   []string // names
	Body      json.RawMessage
}

// record keeps each request and passes it on.
func (c *control) record(encrypted bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, maxBodyBytes))
		if err != nil {
			log.Printf("%s %s: %v", r.Method, r.URL.Path, err)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		kept := json.RawMessage(body)
		if !json.Valid(body) { // none, or not JSON
			kept, err = json.Marshal(string(body))
			check(err)
		}
		c.write(r.RemoteAddr, request{
			At:        float64(time.Now().UnixMicro()) / 1e6,
			Encrypted: encrypted, Method: r.Method, Path: r.URL.Path,
			Query:   slices.Sorted(maps.Keys(r.URL.Query())),
			Headers: slices.Sorted(maps.Keys(r.Header)),
			Body:    kept,
		})
		next.ServeHTTP(w, r)
	})
}

// register admits a node, or logs it out if it asks for a key that has expired.
func (c *control) register(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	check(err)
	var asked tailcfg.RegisterRequest
	if err := json.Unmarshal(body, &asked); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !asked.Expiry.IsZero() && asked.Expiry.Before(time.Now()) {
		c.logOut(asked.NodeKey)
		answer(w, tailcfg.RegisterResponse{NodeKeyExpired: true, MachineAuthorized: true})
		return
	}
	c.mu.Lock()
	c.ephemeral[asked.NodeKey] = asked.Ephemeral
	c.mu.Unlock()
	r.Body = io.NopCloser(bytes.NewReader(body))
	c.server.ServeHTTP(w, r)
}

// logOut removes an ephemeral node, and expires the key of another one.
func (c *control) logOut(node key.NodePublic) {
	c.mu.Lock()
	ephemeral := c.ephemeral[node]
	c.mu.Unlock()
	if ephemeral {
		c.remove(node)
	} else if known := c.server.Node(node); known != nil {
		known.KeyExpiry = time.Now().Add(-time.Second)
		c.server.UpdateNode(known)
	}
	c.announce()
}

func (c *control) remove(node key.NodePublic) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removed[node] = true
}

// orders is the API of the test.
func (c *control) orders() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /reload", func(http.ResponseWriter, *http.Request) { c.announce() })
	mux.HandleFunc("POST /expire/{name}", c.withNode(func(node *tailcfg.Node) {
		node.KeyExpiry = time.Now().Add(-time.Second)
		c.server.UpdateNode(node)
	}))
	mux.HandleFunc("POST /remove/{name}", c.withNode(func(node *tailcfg.Node) { c.remove(node.Key) }))
	mux.HandleFunc("POST /question/{name}/{path...}", func(w http.ResponseWriter, r *http.Request) {
		c.withNode(func(node *tailcfg.Node) { c.question(node, r.PathValue("path")) })(w, r)
	})
	mux.HandleFunc("GET /nodes", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.list()) })
	return mux
}

// question asks a node for one of the pages that the program has for its coordination server. The
// answer is in the record, as the body of POST /c2n/NUMBER.
func (c *control) question(node *tailcfg.Node, path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.questions[node.ID] = &tailcfg.PingRequest{
		// The address of the encrypted connection, which the node then uses again.
		// A node answers each URL once.
		URL:     fmt.Sprintf("%s/c2n/%d", strings.Replace(c.server.ExplicitBaseURL, "http", "https", 1), c.records),
		Types:   "c2n",
		Payload: fmt.Appendf(nil, "GET /%s HTTP/1.1\r\nHost: unused\r\n\r\n", path),
	}
}

// listed is a node for the test.
type listed struct {
	Key               key.NodePublic
	Name              string
	Tags              []string
	Ephemeral, Online bool
}

func (c *control) list() []listed {
	found := []listed{}
	for _, node := range c.nodes() {
		c.mu.Lock()
		ephemeral, online := c.ephemeral[node.Key], c.streams[node.ID] > 0
		c.mu.Unlock()
		found = append(found, listed{node.Key, node.Hostinfo.Hostname(), node.Tags, ephemeral, online})
	}
	return found
}

// withNode answers 404 if no node has the name; of several it takes the newest.
func (c *control) withNode(do func(*tailcfg.Node)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var newest *tailcfg.Node
		for _, node := range c.nodes() {
			if node.Hostinfo.Hostname() == r.PathValue("name") && (newest == nil || node.ID > newest.ID) {
				newest = node
			}
		}
		if newest == nil {
			http.NotFound(w, r)
			return
		}
		do(newest)
		c.announce()
	}
}

func (c *control) nodes() []*tailcfg.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(c.server.AllNodes(), func(n *tailcfg.Node) bool { return c.removed[n.Key] })
}

// announce lets every stream send a new map.
func (c *control) announce() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.changed)
	c.changed = make(chan struct{})
}

// serveMap handles one map request of a node, to its end.
func (c *control) serveMap(ctx context.Context, w testcontrol.MapStreamWriter, req *tailcfg.MapRequest) {
	node, _ := c.current(req.NodeKey)
	if node == nil {
		return
	}
	if !req.ReadOnly && !(req.Stream && req.Version >= readOnlyStreams) {
		c.learn(node, req)
	}
	if !req.Stream {
		_ = w.SendMapMessage(&tailcfg.MapResponse{})
		return
	}
	c.count(node, 1)
	defer c.count(node, -1)
	sent := map[tailcfg.NodeID]bool{}
	for {
		node, changed := c.current(req.NodeKey)
		if node == nil {
			return
		}
		if w.SendMapMessage(c.networkMap(node, sent)) != nil {
			return
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				waiting = false
			case <-time.After(keepAlive):
				if w.SendMapMessage(&tailcfg.MapResponse{KeepAlive: true}) != nil {
					return
				}
			}
		}
	}
}

// current returns a node that is not removed, and a channel that the next change closes.
func (c *control) current(key key.NodePublic) (*tailcfg.Node, chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed[key] {
		return nil, nil
	}
	return c.server.Node(key), c.changed
}

// count notes that a node is connected, and announces the first and the last of its streams.
func (c *control) count(node *tailcfg.Node, change int) {
	c.mu.Lock()
	before := c.streams[node.ID] > 0
	c.streams[node.ID] += change
	now := c.streams[node.ID] > 0
	if timer := c.timers[node.ID]; timer != nil {
		timer.Stop()
	}
	if !now && c.ephemeral[node.Key] {
		c.timers[node.ID] = time.AfterFunc(c.absence, func() { c.removeAbsent(node) })
	}
	c.mu.Unlock()
	if before != now {
		c.announce()
	}
}

// removeAbsent removes a node that has no connection.
func (c *control) removeAbsent(node *tailcfg.Node) {
	c.mu.Lock()
	c.removed[node.Key] = c.streams[node.ID] == 0
	c.mu.Unlock()
	c.announce()
}

// learn stores what a node says about itself.
func (c *control) learn(node *tailcfg.Node, req *tailcfg.MapRequest) {
	node.Endpoints = slices.DeleteFunc(slices.Clone(req.Endpoints), func(e netip.AddrPort) bool { return !e.Addr().Is4() })
	node.DiscoKey, node.Cap = req.DiscoKey, req.Version
	if req.Hostinfo != nil {
		node.Hostinfo = req.Hostinfo.View()
		if net := node.Hostinfo.NetInfo(); net.Valid() && net.PreferredDERP() != 0 {
			node.HomeDERP = net.PreferredDERP()
		}
	}
	c.server.UpdateNode(node)
	c.announce()
}

// networkMap returns the whole map of a node. `sent` holds the peers of the last one and is changed.
func (c *control) networkMap(node *tailcfg.Node, sent map[tailcfg.NodeID]bool) *tailcfg.MapResponse {
	var rules []rule
	check(json.Unmarshal(read(c.policyFile), &rules))
	now := time.Now()
	res := &tailcfg.MapResponse{
		Node: node, DERPMap: c.server.DERPMap, Domain: domain, ControlTime: &now,
		CollectServices: opt.NewBool(false), DNSConfig: &tailcfg.DNSConfig{},
		UserProfiles: []tailcfg.UserProfile{{ID: node.User, LoginName: "tagged-devices"}},
	}
	c.mu.Lock()
	res.PingRequest = c.questions[node.ID]
	delete(c.questions, node.ID)
	c.mu.Unlock()
	filter := []tailcfg.FilterRule{}
	for _, peer := range c.nodes() {
		in, out := []uint16{}, false
		for _, r := range rules {
			if tagged(peer, r.From) && tagged(node, r.To) {
				in = append(in, r.Ports...)
			}
			out = out || tagged(node, r.From) && tagged(peer, r.To)
		}
		if peer.ID == node.ID || len(in) == 0 && !out {
			continue
		}
		c.mu.Lock()
		peer.Online = new(c.streams[peer.ID] > 0)
		c.mu.Unlock()
		peer.Expired = !peer.KeyExpiry.IsZero() && peer.KeyExpiry.Before(now)
		res.Peers = append(res.Peers, peer)
		if len(in) > 0 {
			filter = append(filter, admit(peer, node, in))
		}
	}
	slices.SortFunc(res.Peers, func(a, b *tailcfg.Node) int { return int(a.ID - b.ID) })
	// A list without entries is not sent: the map of filters has to be.
	res.PacketFilters = map[string][]tailcfg.FilterRule{"base": filter}
	if len(res.Peers) == 0 { // else Peers is the whole list
		for id := range sent {
			res.PeersRemoved = append(res.PeersRemoved, id)
		}
	}
	clear(sent)
	for _, peer := range res.Peers {
		sent[peer.ID] = true
	}
	return res
}

// admit returns the rule for TCP from one node to ports of another.
func admit(from, to *tailcfg.Node, ports []uint16) tailcfg.FilterRule {
	found := tailcfg.FilterRule{IPProto: []int{6}}
	for _, address := range from.Addresses {
		found.SrcIPs = append(found.SrcIPs, address.Addr().String())
	}
	for _, address := range to.Addresses {
		for _, port := range ports {
			found.DstPorts = append(found.DstPorts, tailcfg.NetPortRange{
				IP: address.Addr().String(), Ports: tailcfg.PortRange{First: port, Last: port},
			})
		}
	}
	return found
}

func tagged(node *tailcfg.Node, tag string) bool { return slices.Contains(node.Tags, tag) }

// write keeps the request of a node as NUMBER-ADDRESS.json.
func (c *control) write(address string, message request) {
	body, err := json.MarshalIndent(message, "", " ")
	check(err)
	from := netip.MustParseAddrPort(address).Addr()
	c.mu.Lock()
	c.records++
	file := filepath.Join(c.recordDir, fmt.Sprintf("%05d-%s.json", c.records, from))
	c.mu.Unlock()
	check(os.WriteFile(file+".new", body, 0o600))
	check(os.Rename(file+".new", file))
}

func answer(w http.ResponseWriter, message any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(message); err != nil {
		log.Printf("no answer: %v", err)
	}
}

func read(file string) []byte {
	body, err := os.ReadFile(file)
	check(err)
	return body
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
