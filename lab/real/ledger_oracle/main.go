// Verifies checkpoints and proofs of a ledger with Go's own packages for transparency logs.
//
// Input on standard input is JSON: {"key": NAME+HASH+KEY, "note": TEXT, "lines": [TEXT...],
// "line": TEXT, "proof": TEXT, "old": TEXT, "consistency": TEXT}. Only the given parts are
// checked. Output is `ok`, or the first error with exit code 1.
package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type input struct {
	Key         string   `json:"key"`
	Note        string   `json:"note"`
	Lines       []string `json:"lines"`
	Line        string   `json:"line"`
	Proof       string   `json:"proof"`
	Old         string   `json:"old"`
	Consistency string   `json:"consistency"`
}

// tree returns the verified head of a note.
func tree(verifier note.Verifier, text string) (tlog.Tree, error) {
	opened, err := note.Open([]byte(text), note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) < 4 || lines[0] != verifier.Name() {
		return tlog.Tree{}, fmt.Errorf("the note is no checkpoint of %s", verifier.Name())
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: root}, err
}

// hashes parses lines of base64.
func hashes(lines []string) ([]tlog.Hash, error) {
	found := []tlog.Hash{}
	for _, line := range lines {
		raw, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(raw) != tlog.HashSize {
			return nil, fmt.Errorf("%q is no hash", line)
		}
		found = append(found, tlog.Hash(raw))
	}
	return found, nil
}

// computed returns the root over all lines.
func computed(lines []string) (tlog.Hash, error) {
	stored := []tlog.Hash{}
	read := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		found := []tlog.Hash{}
		for _, index := range indexes {
			found = append(found, stored[index])
		}
		return found, nil
	})
	for number, line := range lines {
		added, err := tlog.StoredHashes(int64(number), []byte(line), read)
		if err != nil {
			return tlog.Hash{}, err
		}
		stored = append(stored, added...)
	}
	return tlog.TreeHash(int64(len(lines)), read)
}

// split returns the lines of a proof and the checkpoint after it.
func split(text string) ([]string, string) {
	head, checkpoint, _ := strings.Cut(text, "\n\n")
	return strings.Split(head, "\n"), checkpoint
}

func check(given input) error {
	verifier, err := note.NewVerifier(given.Key)
	if err != nil {
		return err
	}
	if given.Note != "" {
		head, err := tree(verifier, given.Note)
		if err != nil {
			return err
		}
		root, err := computed(given.Lines)
		if err != nil {
			return err
		}
		if head.N != int64(len(given.Lines)) || head.Hash != root {
			return fmt.Errorf("the lines make %d %v, not %d %v", len(given.Lines), root, head.N, head.Hash)
		}
	}
	if given.Proof != "" {
		lines, checkpoint := split(given.Proof)
		head, err := tree(verifier, checkpoint)
		if err != nil {
			return err
		}
		if len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" {
			return fmt.Errorf("no proof: %q", lines[0])
		}
		index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
		if err != nil {
			return err
		}
		path, err := hashes(lines[2:])
		if err != nil {
			return err
		}
		leaf := tlog.RecordHash([]byte(given.Line))
		if err := tlog.CheckRecord(tlog.RecordProof(path), head.N, head.Hash, index, leaf); err != nil {
			return err
		}
	}
	if given.Consistency != "" {
		old, err := tree(verifier, given.Old)
		if err != nil {
			return err
		}
		lines, checkpoint := split(given.Consistency)
		head, err := tree(verifier, checkpoint)
		if err != nil {
			return err
		}
		if lines[0] != fmt.Sprintf("old %d", old.N) {
			return fmt.Errorf("a proof for another size: %q", lines[0])
		}
		proof, err := hashes(lines[1:])
		if err != nil {
			return err
		}
		if err := tlog.CheckTree(tlog.TreeProof(proof), head.N, head.Hash, old.N, old.Hash); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	var given input
	err := json.NewDecoder(os.Stdin).Decode(&given)
	if err == nil {
		err = check(given)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ok")
}
