// Parses a Terraform file with HashiCorp's own parser, evaluates it, and prints it as JSON.
//
// Each block is {"type", "labels", "attributes", "blocks"}. A reference to something that is not in
// the file has the value "ref:NAME", where NAME is as it is written, so that a test sees where it is
// used. `jsonencode` is the function of Terraform: its result is a text.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
	ctyjson "github.com/zclconf/go-cty/cty/json"
)

type block struct {
	Type       string                     `json:"type"`
	Labels     []string                   `json:"labels"`
	Attributes map[string]json.RawMessage `json:"attributes"`
	Blocks     []block                    `json:"blocks"`
}

func main() {
	text, err := io.ReadAll(os.Stdin)
	exitOn(err)
	file, diagnostics := hclsyntax.ParseConfig(text, "main.tf", hcl.InitialPos)
	if diagnostics.HasErrors() {
		exitOn(diagnostics)
	}
	found, err := read(file.Body.(*hclsyntax.Body))
	exitOn(err)
	exitOn(json.NewEncoder(os.Stdout).Encode(found.Blocks))
}

func read(body *hclsyntax.Body) (block, error) {
	found := block{Attributes: map[string]json.RawMessage{}, Blocks: []block{}, Labels: []string{}}
	for name, attribute := range body.Attributes {
		if call, ok := attribute.Expr.(*hclsyntax.FunctionCallExpr); ok && call.Name == "list" {
			found.Attributes[name] = json.RawMessage(`"list"`) // a type of Terraform, not a value
			continue
		}
		value, diagnostics := attribute.Expr.Value(scope(attribute.Expr))
		if diagnostics.HasErrors() {
			return found, diagnostics
		}
		text, err := ctyjson.Marshal(value, value.Type())
		if err != nil {
			return found, fmt.Errorf("%s: %w", name, err)
		}
		found.Attributes[name] = text
	}
	for _, inner := range body.Blocks {
		one, err := read(inner.Body)
		if err != nil {
			return found, err
		}
		one.Type = inner.Type
		one.Labels = append(one.Labels, inner.Labels...)
		found.Blocks = append(found.Blocks, one)
	}
	return found, nil
}

// scope returns the functions of Terraform that are used, and a value for each reference.
func scope(expression hclsyntax.Expression) *hcl.EvalContext {
	tree := map[string]any{}
	for _, traversal := range expression.Variables() {
		at, names := tree, []string{}
		for number, step := range traversal {
			name := ""
			switch s := step.(type) {
			case hcl.TraverseRoot:
				name = s.Name
			case hcl.TraverseAttr:
				name = s.Name
			}
			names = append(names, name)
			if number == len(traversal)-1 {
				at[name] = "ref:" + strings.Join(names, ".")
				break
			}
			if at[name] == nil {
				at[name] = map[string]any{}
			}
			at = at[name].(map[string]any)
		}
	}
	variables := map[string]cty.Value{}
	for name, inner := range tree {
		variables[name] = valueOf(inner)
	}
	return &hcl.EvalContext{
		Variables: variables,
		Functions: map[string]function.Function{"jsonencode": stdlib.JSONEncodeFunc},
	}
}

func valueOf(inner any) cty.Value {
	if text, ok := inner.(string); ok {
		return cty.StringVal(text)
	}
	found := map[string]cty.Value{}
	for name, value := range inner.(map[string]any) {
		found[name] = valueOf(value)
	}
	return cty.ObjectVal(found)
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
