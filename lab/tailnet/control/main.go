// control is a coordination server for tests. The protocol with the nodes is that of Tailscale's own
// test package; the policy, the ends of nodes and the record of their messages are added here.
//
// Nodes join with the auth key and get the tags that they ask for. Rules allow TCP ports from one tag
// to another. With a changed policy file every node gets a new network map after POST /reload.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

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
)

type rule struct {
	From, To string   // tags
	Ports    []uint16 // TCP
}

type control struct {
	server     *testcontrol.Server
	policyFile string
	recordDir  string

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change
	removed map[key.NodePublic]bool
	streams map[tailcfg.NodeID]int
	records int
}

func main() {
	log.SetFlags(log.Lmicroseconds)
	listen := flag.String("listen", "", "address and port for nodes")
	admin := flag.String("admin", "", "address and port for the test")
	derpMap := flag.String("derp-map", "", "file with the map of relays, JSON")
	policy := flag.String("policy", "", "file with a list of rules, JSON")
	authKey := flag.String("auth-key", "", "file with the key that every node needs")
	record := flag.String("record", "", "folder for the messages of nodes")
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
		server: server, policyFile: *policy, recordDir: *record,
		changed: make(chan struct{}),
		removed: map[key.NodePublic]bool{},
		streams: map[tailcfg.NodeID]int{},
	}
	server.AltMapStream = c.serveMap
	go func() { log.Fatal(http.ListenAndServe(*admin, c.orders())) }()
	log.Printf("serving nodes at %s", *listen)
	log.Fatal(http.ListenAndServe(*listen, server))
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
	mux.HandleFunc("POST /remove/{name}", c.withNode(func(node *tailcfg.Node) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.removed[node.Key] = true
	}))
	return mux
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
	c.write(node.Hostinfo.Hostname(), req)
	if !req.ReadOnly && !(req.Stream && req.Version >= readOnlyStreams) {
		c.learn(node, req)
	}
	if !req.Stream {
		_ = w.SendMapMessage(&tailcfg.MapResponse{})
		return
	}
	c.count(node.ID, 1)
	defer c.count(node.ID, -1)
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
func (c *control) count(id tailcfg.NodeID, change int) {
	c.mu.Lock()
	before := c.streams[id]
	c.streams[id] += change
	flips := (before > 0) != (c.streams[id] > 0)
	c.mu.Unlock()
	if flips {
		c.announce()
	}
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

// write keeps a message of a node as NUMBER-NAME.json.
func (c *control) write(name string, message any) {
	body, err := json.MarshalIndent(message, "", " ")
	check(err)
	c.mu.Lock()
	c.records++
	file := fmt.Sprintf("%05d-%s.json", c.records, filepath.Base(name))
	c.mu.Unlock()
	check(os.WriteFile(filepath.Join(c.recordDir, file), body, 0o600))
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
