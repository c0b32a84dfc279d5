{{/*
Where a role may connect to, as `byoc-agents policy` derives it from the same environment; a test
holds both together. A flow: host, port, kind, place (node, cluster, beyond), cidrs, literal, scheme.
*/}}

{{/* The flow of a URL, or nothing if it stays in the pod: dict root, url, kind. */}}
{{- define "byoc-agents.flow" -}}
{{- $parts := urlParse .url -}}
{{- $host := regexReplaceAll ":[0-9]+$" $parts.host "" | lower -}}
{{- $usual := ternary "80" "443" (eq $parts.scheme "http") -}}
{{- $port := regexFind ":[0-9]+$" $parts.host | trimPrefix ":" | default $usual -}}
{{- $six := hasPrefix "[" $host -}}
{{- $host = $host | trimPrefix "[" | trimSuffix "]" -}}
{{- $literal := or $six (regexMatch "^[0-9.]+$" $host) -}}
{{- $place := "beyond" -}}
{{- if or (hasPrefix "169.254." $host) (hasPrefix "fd00:ec2:" $host) -}}{{- $place = "node" -}}
{{- else if and (not $literal) (or (not (contains "." $host)) (hasSuffix ".svc" $host) (hasSuffix ".cluster.local" $host)) -}}{{- $place = "cluster" -}}
{{- end -}}
{{- $known := .root.Values.networkPolicy.cidrs | default dict -}}
{{- $cidrs := ternary (list (printf "%s/%s" $host (ternary "128" "32" $six))) (index $known $host | default (index $known .kind) | default list) $literal -}}
{{- if not (or (eq $host "localhost") (hasPrefix "127." $host)) -}}
{{- dict "host" $host "port" (int $port) "kind" .kind "place" $place "cidrs" $cidrs "literal" $literal "scheme" $parts.scheme | toJson -}}
{{- end -}}
{{- end -}}

{{/* The URLs of a role before any proxy: dict root, role. */}}
{{- define "byoc-agents.urls" -}}
{{- $v := .root.Values -}}
{{- $urls := list -}}
{{- if has "billing-scraper" .role.daemons -}}
{{- if eq .role.place "deployment" -}}
{{- range $v.billingScraper.servers -}}{{- $urls = append $urls (dict "kind" "clickhouse" "url" .) -}}{{- end -}}
{{- end -}}
{{- $suffix := include "byoc-agents.dnsSuffix" $v.region -}}
{{- $regional := printf "s3.%s.%s" $v.region $suffix -}}
{{- $virtual := ternary $regional (printf "%s.%s" $v.billingScraper.bucket $regional) (contains "." $v.billingScraper.bucket) -}}
{{- $urls = append $urls (dict "kind" "s3" "url" ($v.aws.endpointUrlS3 | default $v.aws.endpointUrl | default (printf "https://%s" $virtual))) -}}
{{- end -}}
{{- if has "state-exporter" .role.daemons -}}
{{- if eq $v.stateExporter.placement "deployment" -}}
{{- range $v.stateExporter.servers -}}{{- $urls = append $urls (dict "kind" "clickhouse" "url" .) -}}{{- end -}}
{{- end -}}
{{- $urls = append $urls (dict "kind" "sqs" "url" ($v.aws.endpointUrlSqs | default $v.aws.endpointUrl | default $v.stateExporter.queueUrl)) -}}
{{- end -}}
{{- if include "byoc-agents.callsAws" .role -}}
{{- if eq $v.aws.identity "irsa" -}}
{{- $sts := printf "https://sts.%s.%s" $v.region (include "byoc-agents.dnsSuffix" $v.region) -}}
{{- $urls = append $urls (dict "kind" "sts" "url" ($v.aws.endpointUrl | default $sts)) -}}
{{- else if eq $v.aws.identity "podIdentity" -}}
{{- $urls = append $urls (dict "kind" "pod-identity" "url" (printf "http://%s/v1/credentials" (eq $v.networkPolicy.family "ipv6" | ternary "[fd00:ec2::23]" "169.254.170.23"))) -}}
{{- end -}}
{{- end -}}
{{- if has "alert-forwarder" .role.daemons -}}
{{- $urls = append $urls (dict "kind" "control-plane" "url" $v.alertForwarder.url) -}}
{{- end -}}
{{- if has "access-broker" .role.daemons -}}
{{- range $v.accessBroker.servers -}}{{- $urls = append $urls (dict "kind" "clickhouse" "url" .) -}}{{- end -}}
{{- range list $v.accessBroker.eventsUrl $v.accessBroker.requestsUrl -}}
{{- if . -}}{{- $urls = append $urls (dict "kind" "control-plane" "url" .) -}}{{- end -}}
{{- end -}}
{{- if include "byoc-agents.scaledEndpoints" .root -}}{{- $urls = append $urls (dict "kind" "kubernetes" "url" $v.accessBroker.kubernetesUrl) -}}{{- end -}}
{{- end -}}
{{- toJson $urls -}}
{{- end -}}

{{/* The flows of a role, one per host and port. With a proxy: the proxy and the local ones. */}}
{{- define "byoc-agents.flows" -}}
{{- $root := .root -}}
{{- $proxy := $root.Values.httpsProxy -}}
{{- $urls := include "byoc-agents.urls" . | fromJsonArray -}}
{{- if $proxy -}}{{- $urls = prepend $urls (dict "kind" "proxy" "url" $proxy) -}}{{- end -}}
{{- $found := list -}}
{{- $seen := list -}}
{{- range $urls -}}
{{- $text := include "byoc-agents.flow" (dict "root" $root "url" .url "kind" .kind) -}}
{{- if $text -}}
{{- $flow := fromJson $text -}}
{{- $end := printf "%s:%v" $flow.host $flow.port -}}
{{- if and (not (has $end $seen)) (or (not $proxy) (eq .kind "proxy") (eq $flow.place "node")) -}}
{{- $found = append $found $flow -}}
{{- $seen = append $seen $end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "byoc-agents.dnsSuffix" -}}
{{- if hasPrefix "cn-" . -}}amazonaws.com.cn
{{- else if hasPrefix "eusc-" . -}}amazonaws.eu
{{- else if hasPrefix "us-iso-" . -}}c2s.ic.gov
{{- else if hasPrefix "us-isob-" . -}}sc2s.sgov.gov
{{- else if hasPrefix "eu-isoe-" . -}}cloud.adc-e.uk
{{- else if hasPrefix "us-isof-" . -}}csp.hci.ic.gov
{{- else -}}amazonaws.com
{{- end -}}
{{- end -}}

{{/* Every address of a family but loopback, link-local and the node's services, as in agents/byoc_agents/policy/flows.py. */}}
{{- define "byoc-agents.anywhere" -}}
{{- $four := dict "ipBlock" (dict "cidr" "0.0.0.0/0" "except" (list "127.0.0.0/8" "169.254.0.0/16")) -}}
{{- $six := dict "ipBlock" (dict "cidr" "::/0" "except" (list "::1/128" "fe80::/10" "fd00:ec2::/32" "64:ff9b::7f00:0/104" "64:ff9b::a9fe:0/112")) -}}
{{- index (dict "ipv4" (list $four) "ipv6" (list $six) "dual" (list $four $six)) . | toJson -}}
{{- end -}}

{{/* Not empty if the cluster's resolver is OpenShift's. */}}
{{- define "byoc-agents.openshiftDns" -}}
{{- if or .Values.openshift (has "openshift" .Values.networkPolicy.dns) -}}true{{- end -}}
{{- end -}}

{{/* The rules by which pods ask the resolvers, as JSON. */}}
{{- define "byoc-agents.dnsRules" -}}
{{- $rules := list -}}
{{- $peers := list (dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" "kube-system")) "podSelector" (dict "matchLabels" (dict "k8s-app" "kube-dns"))) -}}
{{- if include "byoc-agents.openshiftDns" . -}}
{{- $openshift := dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" "openshift-dns")) "podSelector" (dict "matchLabels" (dict "dns.operator.openshift.io/daemonset-dns" "default")) -}}
{{- $rules = append $rules (dict "to" (list $openshift) "ports" (list (dict "protocol" "UDP" "port" 5353) (dict "protocol" "TCP" "port" 5353))) -}}
{{- $peers = list -}}
{{- end -}}
{{- range without .Values.networkPolicy.dns "openshift" -}}{{- $peers = append $peers (dict "ipBlock" (dict "cidr" .)) -}}{{- end -}}
{{- if $peers -}}{{- $rules = append $rules (dict "to" $peers "ports" (list (dict "protocol" "UDP" "port" 53) (dict "protocol" "TCP" "port" 53))) -}}{{- end -}}
{{- toJson $rules -}}
{{- end -}}

{{/* The spec of a NetworkPolicy: everything that is not listed is denied in both directions. */}}
{{- define "byoc-agents.networkPolicySpec" -}}
{{- $policy := .root.Values.networkPolicy -}}
{{- $flows := include "byoc-agents.flows" . | fromJsonArray -}}
{{- $named := false -}}
{{- range $flows -}}{{- if not .literal -}}{{- $named = true -}}{{- end -}}{{- end -}}
{{- $rules := list -}}
{{- if $named -}}{{- $rules = include "byoc-agents.dnsRules" .root | fromJsonArray -}}{{- end -}}
{{- range $flows -}}
{{- $peers := list -}}
{{- if .cidrs -}}
{{- range .cidrs -}}{{- $peers = append $peers (dict "ipBlock" (dict "cidr" .)) -}}{{- end -}}
{{- else if eq .place "cluster" -}}
{{- $peers = list (dict "namespaceSelector" dict) -}}
{{- else -}}
{{- $peers = include "byoc-agents.anywhere" $policy.family | fromJsonArray -}}
{{- end -}}
{{- $rule := dict "to" $peers "ports" (list (dict "protocol" "TCP" "port" (int .port))) -}}
{{- if not (has $rule $rules) -}}{{- $rules = append $rules $rule -}}{{- end -}}
{{- end -}}
podSelector:
  matchLabels:
    {{- include "byoc-agents.selector" . | nindent 4 }}
policyTypes: [Ingress, Egress]
ingress:
  - {{ include "byoc-agents.comer" (dict "from" $policy.prometheus "ports" (list (int .role.port))) | nindent 4 | trim }}
  {{- if has "alert-forwarder" .role.daemons }}
  - {{ include "byoc-agents.comer" (dict "from" $policy.alertmanager "ports" (list 9095)) | nindent 4 | trim }}
  {{- end }}
egress:
  {{- toYaml $rules | nindent 2 }}
{{- end -}}

{{- define "byoc-agents.comer" -}}
from:
  - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ .from.namespace }}}}
    {{- with .from.label }}
    podSelector: {matchLabels: {{ include "byoc-agents.label" . }}}
    {{- end }}
ports:
  {{- range .ports }}
  - {protocol: TCP, port: {{ . }}}
  {{- end }}
{{- end -}}

{{/* {"NAME": "VALUE"} of NAME=VALUE. */}}
{{- define "byoc-agents.label" -}}
{{- if . -}}{{- $pair := splitn "=" 2 . -}}{{- dict $pair._0 $pair._1 | toJson -}}{{- else -}}{}{{- end -}}
{{- end -}}

{{/* The same for Cilium, which matches host names. */}}
{{- define "byoc-agents.ciliumSpec" -}}
{{- $policy := .root.Values.networkPolicy -}}
{{- $flows := include "byoc-agents.flows" . | fromJsonArray -}}
{{- $names := list -}}
{{- $byPort := dict -}}
{{- $rules := list -}}
{{- range $flows -}}
{{- $match := dict "matchName" .host -}}
{{- $ports := list (dict "ports" (list (dict "port" (toString .port) "protocol" "TCP"))) -}}
{{- if and (not .literal) (not (has $match $names)) -}}{{- $names = append $names $match -}}{{- end -}}
{{- if and (not .literal) (eq .place "beyond") -}}
{{- $_ := set $byPort (toString .port) (append (index $byPort (toString .port) | default list) $match) -}}
{{- else if eq .place "cluster" -}}
{{- $rules = append $rules (dict "toEntities" (list (eq .kind "kubernetes" | ternary "kube-apiserver" "cluster")) "toPorts" $ports) -}}
{{- else -}}
{{- $rules = append $rules (dict "toCIDR" .cidrs "toPorts" $ports) -}}
{{- if eq .place "node" -}}{{- $rules = append $rules (dict "toEntities" (list "host") "toPorts" $ports) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- range $port, $matches := $byPort -}}
{{- $rules = append $rules (dict "toFQDNs" $matches "toPorts" (list (dict "ports" (list (dict "port" $port "protocol" "TCP"))))) -}}
{{- end -}}
{{- if $names -}}
{{- $dnsPorts := list (dict "ports" (list (dict "port" "53" "protocol" "ANY")) "rules" (dict "dns" $names)) -}}
{{- if include "byoc-agents.openshiftDns" .root -}}
{{- $openshift := dict "k8s:io.kubernetes.pod.namespace" "openshift-dns" "k8s:dns.operator.openshift.io/daemonset-dns" "default" -}}
{{- $rules = prepend $rules (dict "toEndpoints" (list (dict "matchLabels" $openshift)) "toPorts" (list (dict "ports" (list (dict "port" "5353" "protocol" "ANY")) "rules" (dict "dns" $names)))) -}}
{{- else -}}
{{- $kubeDns := dict "k8s:io.kubernetes.pod.namespace" "kube-system" "k8s:k8s-app" "kube-dns" -}}
{{- $rules = prepend $rules (dict "toEndpoints" (list (dict "matchLabels" $kubeDns)) "toPorts" $dnsPorts) -}}
{{- end -}}
{{- range without $policy.dns "openshift" -}}
{{- $rules = append $rules (dict "toCIDR" (list .) "toPorts" $dnsPorts) -}}
{{- if regexMatch "^(169[.]254[.]|fe[89ab][0-9a-f]:)" . -}}{{- /* NodeLocal DNSCache: a program or a pod of the node */ -}}
{{- $nodeLocal := dict "k8s:io.kubernetes.pod.namespace" "kube-system" "k8s:k8s-app" "node-local-dns" -}}
{{- $rules = append $rules (dict "toEntities" (list "host") "toPorts" $dnsPorts) -}}
{{- $rules = append $rules (dict "toEndpoints" (list (dict "matchLabels" $nodeLocal)) "toPorts" $dnsPorts) -}}
{{- end -}}
{{- end -}}
{{- end -}}
endpointSelector:
  matchLabels:
    {{- include "byoc-agents.selector" . | nindent 4 }}
ingress:
  - {{ include "byoc-agents.ciliumComer" (dict "from" $policy.prometheus "ports" (list (int .role.port))) | nindent 4 | trim }}
  {{- if has "alert-forwarder" .role.daemons }}
  - {{ include "byoc-agents.ciliumComer" (dict "from" $policy.alertmanager "ports" (list 9095)) | nindent 4 | trim }}
  {{- end }}
egress:
  {{- toYaml ($rules | default (list dict)) | nindent 2 }}
{{- end -}}

{{- define "byoc-agents.ciliumComer" -}}
fromEndpoints:
  - matchLabels: {{ merge (dict "k8s:io.kubernetes.pod.namespace" .from.namespace) (include "byoc-agents.label" .from.label | fromJson) | toJson }}
toPorts:
  - ports:
      {{- range .ports }}
      - {port: {{ . | toString | quote }}, protocol: TCP}
      {{- end }}
{{- end -}}

{{/* Not empty if a policy selects the pods of a role: dict root, role. */}}
{{- define "byoc-agents.hasPolicy" -}}
{{- $v := .root.Values -}}
{{- if or (eq .role.place "deployment") (eq $v.clickhouse.owner "chart") $v.networkPolicy.selectClickHouse -}}true{{- end -}}
{{- end -}}

{{/* The flows of all daemons in ClickHouse's pod, one per host and port, as JSON. */}}
{{- define "byoc-agents.podFlows" -}}
{{- $root := . -}}
{{- $found := list -}}
{{- $seen := list -}}
{{- range include "byoc-agents.rolesIn" (dict "root" . "place" "pod") | fromJsonArray -}}
{{- range .daemons -}}
{{- range include "byoc-agents.flows" (dict "root" $root "role" (dict "place" "pod" "daemons" (list .))) | fromJsonArray -}}
{{- $end := printf "%s:%v" .host .port -}}
{{- if not (has $end $seen) -}}{{- $found = append $found . -}}{{- $seen = append $seen $end -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* One rule of nftables: dict peer, match (of the port, or empty), action, comment. */}}
{{- define "byoc-agents.egressRule" -}}
{{- $family := contains ":" .peer | ternary "ip6" "ip" -}}
{{- printf "    %s daddr %s%s counter %s comment %q" $family .peer .match .action (trunc 100 .comment) -}}
{{- end -}}

{{/*
The rules of sidecars.egressRules, as `byoc-agents policy egress-rules --uid 65532` prints them; a test
holds both together. agents/byoc_agents/policy/pod_rules.py says why they have this form.
*/}}
{{- define "byoc-agents.egressRules" -}}
{{- $given := .Values.sidecars.egressRules -}}
{{- $flows := include "byoc-agents.podFlows" . | fromJsonArray -}}
{{- $reset := "reject with tcp reset" -}}
{{- $daemons := list -}}
{{- $open := list -}}
{{- $closed := list -}}
{{- $named := false -}}
{{- range $flows -}}{{- if not .literal -}}{{- $named = true -}}{{- end -}}{{- end -}}
{{- range $named | ternary $given.dns list -}}
{{- $peer := . -}}
{{- range list "udp" "tcp" -}}{{- $daemons = append $daemons (include "byoc-agents.egressRule" (dict "peer" $peer "match" (printf " %s dport 53" .) "action" "accept" "comment" "dns")) -}}{{- end -}}
{{- end -}}
{{- range $given.also -}}
{{- if contains "/" . -}}{{- $open = append $open (include "byoc-agents.egressRule" (dict "peer" . "match" "" "action" "accept" "comment" "also")) -}}{{- end -}}
{{- end -}}
{{- range $flow := $flows -}}
{{- range .cidrs -}}
{{- $rule := dict "peer" . "match" (printf " tcp dport %d" (int $flow.port)) "action" "accept" "comment" (printf "%s: %s" $flow.kind $flow.host) -}}
{{- $daemons = append $daemons (include "byoc-agents.egressRule" $rule) -}}
{{- if or (has $flow.kind $given.also) (has $flow.host $given.also) -}}
{{- $open = append $open (include "byoc-agents.egressRule" $rule) -}}
{{- else -}}
{{- $closed = append $closed (include "byoc-agents.egressRule" (merge (dict "action" $reset) $rule)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
table inet byoc_agents_pod
delete table inet byoc_agents_pod
table inet byoc_agents_pod {
  chain output {
    type filter hook output priority filter; policy accept;
    oifname "lo" accept
    meta skuid 65532 goto daemons
    tcp flags & (fin | syn | rst | ack) == syn goto others
  }
  chain daemons {
    tcp flags & (fin | syn | rst | ack) != syn accept
    {{- range $daemons }}
{{ . }}
    {{- end }}
    meta l4proto tcp counter {{ $reset }} comment "everything else"
    counter reject comment "everything else"
  }
  chain others {
    {{- range concat $open $closed }}
{{ . }}
    {{- end }}
  }
}
{{- end -}}
