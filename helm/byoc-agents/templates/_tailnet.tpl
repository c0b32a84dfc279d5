{{/*
The way of the vendor's engineers into the cluster. A pod of Tailscale per endpoint hands TCP on to one
nginx, which knows the servers by name. Templates exchange lists and maps as JSON.
*/}}

{{/* Every enabled endpoint: name, host name in the tailnet, ports, replicas. */}}
{{- define "byoc-agents.tailnetEndpoints" -}}
{{- $root := . -}}
{{- $found := list -}}
{{- range $name, $ports := dict "kubernetes" (list 6443) "clickhouse" (list 9441 8444) "metrics" (list 9443) -}}
{{- $given := index $root.Values.tailnet $name -}}
{{- if and $root.Values.tailnet.enabled $given.enabled -}}
{{- $host := $given.hostname | default (regexReplaceAll "[^a-z0-9-]+" (printf "%s-%s" $name $root.Values.serviceId | lower) "-" | trunc 63 | trimSuffix "-") -}}
{{- $found = append $found (dict "name" $name "component" (printf "tailnet-%s" $name) "host" $host "ports" $ports "replicas" (ternary 1 0 $given.alwaysOn)) -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* The endpoints that the broker scales, as the setting BYOC_ACCESS_TAILNET; empty if there is none. */}}
{{- define "byoc-agents.scaledEndpoints" -}}
{{- $root := . -}}
{{- $pairs := list -}}
{{- range include "byoc-agents.tailnetEndpoints" . | fromJsonArray -}}
{{- if eq (int .replicas) 0 -}}{{- $pairs = append $pairs (printf "%s=%s/%s-%s" .name $root.Release.Namespace (include "byoc-agents.name" $root) .component) -}}{{- end -}}
{{- end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/* The labels of a pod: dict root, component. */}}
{{- define "byoc-agents.tailnetLabels" -}}
app.kubernetes.io/name: byoc-agents
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* An address and a port as one text: dict address, port. */}}
{{- define "byoc-agents.hostPort" -}}
{{- if contains ":" .address }}[{{ .address }}]{{ else }}{{ .address }}{{ end }}:{{ .port }}
{{- end -}}

{{/* The ports that an endpoint serves, and where each goes. Only these are reachable. dict root, endpoint. */}}
{{- define "byoc-agents.serve" -}}
{{- $root := .root -}}
{{- $tcp := dict -}}
{{- range .endpoint.ports -}}
{{- $to := include "byoc-agents.hostPort" (dict "address" $root.Values.tailnet.nginx.address "port" .) -}}
{{- $_ := set $tcp (toString .) (dict "TCPForward" $to "ProxyProtocol" 2) -}}
{{- end -}}
{{- dict "TCP" $tcp | toPrettyJson -}}
{{- end -}}

{{/* The `listen` of one port for the cluster's addresses: dict root, port, words. */}}
{{- define "byoc-agents.listen" -}}
{{- $family := .root.Values.networkPolicy.family -}}
{{- $place := index (dict "ipv4" (toString .port) "ipv6" (printf "[::]:%v" .port) "dual" (printf "[::]:%v" .port)) $family -}}
listen {{ $place }}{{ with .words }} {{ . }}{{ end }}{{ if eq $family "dual" }} ipv6only=off{{ end }};
{{- end -}}

{{/*
TLS passes through to ClickHouse and to the API server, which want the engineer's own certificate or
token: nginx reads the server name only. It ends TLS for the metrics, since Prometheus has none.
*/}}
{{- define "byoc-agents.nginxConf" -}}
{{- $root := . -}}
{{- $v := .Values.tailnet -}}
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr warn;
events { worker_connections 1024; }

stream {
  log_format connection escape=json '{"time":"$time_iso8601","engineer":"$proxy_protocol_addr","server_name":"$ssl_preread_server_name","to":"$upstream_addr","received_bytes":$bytes_received,"sent_bytes":$bytes_sent,"seconds":$session_time,"status":$status}';
  access_log /dev/stdout connection;
  resolver {{ $v.nginx.resolver }} valid=10s;
  ssl_preread on;
  preread_timeout 5s;
  proxy_connect_timeout 3s;
  proxy_timeout 10m;
  # The engineer's address in the tailnet comes with the PROXY protocol.
  limit_conn_zone $proxy_protocol_addr zone=engineers:1m;
  limit_conn engineers {{ $v.connectionsPerAddress }};
  {{- if $v.clickhouse.enabled }}
  {{- range $port := list 9441 8444 }}
  map $ssl_preread_server_name $clickhouse_{{ $port }} {
    default "";
    {{- range $name, $host := $v.clickhouse.replicas }}
    {{ quote $name }} {{ include "byoc-agents.hostPort" (dict "address" $host "port" $port) | quote }};
    {{- end }}
  }
  server { {{ include "byoc-agents.listen" (dict "root" $root "port" $port "words" "proxy_protocol so_keepalive=on") }} proxy_pass $clickhouse_{{ $port }}; }
  {{- end }}
  {{- end }}
  {{- if $v.kubernetes.enabled }}
  map $ssl_preread_server_name $kubernetes {
    default "";
    {{ quote $v.kubernetes.serverName }} {{ quote $v.kubernetes.address }};
  }
  server { {{ include "byoc-agents.listen" (dict "root" $root "port" 6443 "words" "proxy_protocol so_keepalive=on") }} proxy_pass $kubernetes; }
  {{- end }}
}

http {
  client_body_temp_path /tmp/body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  server_tokens off;
  access_log off;
  server {
    {{ include "byoc-agents.listen" (dict "root" $root "port" 8081 "words" "") }}
    location = /healthz { return 200; }
    location / { return 404; }
  }
  {{- if $v.metrics.enabled }}
  log_format request escape=json '{"time":"$time_iso8601","engineer":"$proxy_protocol_addr","server_name":"$ssl_server_name","certificate":"$ssl_client_serial","verify":"$ssl_client_verify","method":"$request_method","path":"$uri","sent_bytes":$bytes_sent,"status":$status}';
  resolver {{ $v.nginx.resolver }} valid=10s;
  client_max_body_size 64k;
  limit_conn_zone $proxy_protocol_addr zone=metrics:1m;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_session_tickets off;
  ssl_session_cache off;
  server {
    {{ include "byoc-agents.listen" (dict "root" $root "port" 9443 "words" "ssl proxy_protocol default_server") }}
    ssl_reject_handshake on;
  }
  server {
    {{ include "byoc-agents.listen" (dict "root" $root "port" 9443 "words" "ssl proxy_protocol") }}
    server_name {{ $v.metrics.serverName }};
    access_log /dev/stdout request;
    ssl_certificate /etc/tailnet/tls/tls.crt;
    ssl_certificate_key /etc/tailnet/tls/tls.key;
    ssl_client_certificate /etc/tailnet/access-ca/ca.crt;
    ssl_verify_client on;
    ssl_verify_depth 1;
    limit_conn metrics {{ $v.connectionsPerAddress }};
    location ~ ^/api/v1/(query|query_range|labels|label/[a-zA-Z0-9_]+/values|series|metadata)$ {
      limit_except GET POST { deny all; }
      set $prometheus {{ quote $v.metrics.address }};
      proxy_set_header Authorization "";
      proxy_pass http://$prometheus;
    }
    location / { return 404; }
  }
  {{- end }}
}
{{- end -}}

{{/* Mistakes in the values, as JSON. */}}
{{- define "byoc-agents.tailnetChecks" -}}
{{- $v := .Values -}}
{{- $t := $v.tailnet -}}
{{- $wrong := list -}}
{{- if and $v.accessListener.secretName (ne $v.clickhouse.owner "chart") -}}{{- $wrong = append $wrong (printf "accessListener.secretName: has no effect for owner %s: its owner configures ClickHouse (examples/access-listener)" $v.clickhouse.owner) -}}{{- end -}}
{{- if $t.enabled -}}
{{- if not (or $t.kubernetes.enabled $t.clickhouse.enabled $t.metrics.enabled) -}}{{- $wrong = append $wrong "tailnet.enabled: serves nothing; expected kubernetes.enabled, clickhouse.enabled or metrics.enabled" -}}{{- end -}}
{{- if not $t.image -}}{{- $wrong = append $wrong "tailnet.image: is required: tailscale/tailscale by its digest, NAME@sha256:DIGEST" -}}{{- end -}}
{{- if not $t.nginx.image -}}{{- $wrong = append $wrong "tailnet.nginx.image: is required: nginx by its digest, NAME@sha256:DIGEST" -}}{{- end -}}
{{- if not $t.nginx.address -}}{{- $wrong = append $wrong "tailnet.nginx.address: is required: an unused address of the cluster's Service network; the pods cannot resolve the cluster's names" -}}{{- end -}}
{{- if and $t.nginx.address (ne (contains ":" $t.nginx.address) (eq $v.networkPolicy.family "ipv6")) (ne $v.networkPolicy.family "dual") -}}{{- $wrong = append $wrong (printf "tailnet.nginx.address: %s is not of the family %s of networkPolicy.family" $t.nginx.address $v.networkPolicy.family) -}}{{- end -}}
{{- if not $t.authKeySecret.name -}}{{- $wrong = append $wrong "tailnet.authKeySecret.name: is required: a Secret with a key of an ephemeral, tagged node" -}}{{- end -}}
{{- if not (or $t.cidrs $v.networkPolicy.wide) -}}{{- $wrong = append $wrong "tailnet.cidrs: is required: the addresses of the coordination server and the relays, since a NetworkPolicy cannot contain names (or networkPolicy.wide: true for every public address)" -}}{{- end -}}
{{- if not $t.dns -}}{{- $wrong = append $wrong "tailnet.dns: is required: the addresses of the nodes' resolver, which these pods ask instead of the cluster's" -}}{{- end -}}
{{- if not $v.networkPolicy.enabled -}}{{- $wrong = append $wrong "networkPolicy.enabled: is required by tailnet.enabled: without a policy the pods reach the whole cluster" -}}{{- end -}}
{{- if $v.httpsProxy -}}{{- $wrong = append $wrong "tailnet.enabled: does not use httpsProxy; expected a route to the coordination server and the relays, and no httpsProxy" -}}{{- end -}}
{{- if and (hasPrefix "http:" $t.loginServer) (not $v.allowInsecureEndpoints) (not (regexMatch "^http://(127(\\.[0-9]{1,3}){3}|localhost|\\[::1\\])(:[0-9]+)?$" $t.loginServer)) -}}{{- $wrong = append $wrong (printf "tailnet.loginServer: %s is plain http; expected https (allowInsecureEndpoints permits it for trials)" $t.loginServer) -}}{{- end -}}
{{- if not $v.networkPolicy.wide -}}
{{- range $name, $cidrs := dict "tailnet.cidrs" $t.cidrs "tailnet.dns" $t.dns "tailnet.kubernetes.cidrs" $t.kubernetes.cidrs -}}
{{- range $cidrs -}}{{- if include "byoc-agents.isWide" . -}}{{- $wrong = append $wrong (printf "%s: %s is wider than /8 (IPv6: /24, or /104 if it embeds IPv4), or within 0.0.0.0/8; expected narrower addresses, or networkPolicy.wide: true" $name .) -}}{{- end -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $node := "^(0|127|169\\.254)\\." -}}
{{- range $name, $cidrs := dict "tailnet.cidrs" $t.cidrs "tailnet.kubernetes.cidrs" $t.kubernetes.cidrs -}}
{{- range $cidrs -}}{{- if or (regexMatch $node .) (regexMatch "^(fe[89ab]|0*:)" (lower .)) -}}{{- $wrong = append $wrong (printf "%s: %s has addresses of the node itself; expected a server's" $name .) -}}{{- end -}}{{- end -}}
{{- end -}}
{{- range $t.cidrs -}}{{- if and (regexMatch "^(10|192\\.168|172\\.(1[6-9]|2[0-9]|3[01]))\\." .) (regexMatch "/(1?[0-9]|2[0-3])$" .) -}}{{- $wrong = append $wrong (printf "tailnet.cidrs: %s is private and wider than /24; expected the addresses of the coordination server and the relays" .) -}}{{- end -}}{{- end -}}
{{- range $t.dns -}}{{- if and (regexMatch $node .) (ne . "169.254.169.253/32") -}}{{- $wrong = append $wrong (printf "tailnet.dns: %s is an address of the node itself; expected the nodes' resolver" .) -}}{{- end -}}{{- end -}}
{{- if eq $t.scalerServiceAccount "default" -}}{{- $wrong = append $wrong "tailnet.scalerServiceAccount: default is the account of every pod that names none; expected an account of its own" -}}{{- end -}}
{{- range $name, $address := dict "tailnet.kubernetes.address" $t.kubernetes.address "tailnet.metrics.address" $t.metrics.address -}}
{{- if regexMatch $node $address -}}{{- $wrong = append $wrong (printf "%s: %s is an address of the node itself; expected a server's" $name $address) -}}{{- end -}}
{{- end -}}
{{- range $name, $host := $t.clickhouse.replicas -}}
{{- if regexMatch $node $host -}}{{- $wrong = append $wrong (printf "tailnet.clickhouse.replicas: %s is an address of the node itself; expected a server's" $host) -}}{{- end -}}
{{- end -}}
{{- if $t.kubernetes.enabled -}}
{{- if not $t.kubernetes.serverName -}}{{- $wrong = append $wrong "tailnet.kubernetes.serverName: is required: a name of the API server's certificate" -}}{{- end -}}
{{- if not $t.kubernetes.cidrs -}}{{- $wrong = append $wrong "tailnet.kubernetes.cidrs: is required: the addresses of the API server, since a NetworkPolicy cannot contain names" -}}{{- end -}}
{{- end -}}
{{- if $t.clickhouse.enabled -}}
{{- if not $t.clickhouse.replicas -}}{{- $wrong = append $wrong "tailnet.clickhouse.replicas: is required: one name: host per replica; the names are those of ClickHouse's certificate" -}}{{- end -}}
{{- if and (eq $v.clickhouse.owner "chart") (not $v.accessListener.secretName) -}}{{- $wrong = append $wrong "accessListener.secretName: is required by tailnet.clickhouse: without it nothing listens on 9441 and 8444" -}}{{- end -}}
{{- end -}}
{{- if $t.metrics.enabled -}}
{{- range $name, $meaning := dict "serverName" "a name of the certificate" "address" "Prometheus, HOST:PORT" "tlsSecretName" "a Secret of type kubernetes.io/tls" -}}
{{- if not (index $t.metrics $name) -}}{{- $wrong = append $wrong (printf "tailnet.metrics.%s: is required: %s" $name $meaning) -}}{{- end -}}
{{- end -}}
{{- if not $t.accessCaConfigMap -}}{{- $wrong = append $wrong "tailnet.accessCaConfigMap: is required by tailnet.metrics: a ConfigMap whose ca.crt signs the engineers' certificates" -}}{{- end -}}
{{- end -}}
{{- $hosts := list -}}
{{- range include "byoc-agents.tailnetEndpoints" . | fromJsonArray -}}
{{- if has .host $hosts -}}{{- $wrong = append $wrong (printf "tailnet.%s.hostname: %s is another endpoint's; each has a name of its own" .name .host) -}}{{- end -}}
{{- $hosts = append $hosts .host -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{/* Where the pods may connect beyond the cluster: the given networks, or every public address. As JSON. */}}
{{- define "byoc-agents.tailnetBeyond" -}}
{{- $peers := list -}}
{{- range .Values.tailnet.cidrs -}}{{- $peers = append $peers (dict "ipBlock" (dict "cidr" .)) -}}{{- end -}}
{{- if not $peers -}}
{{- $four := dict "ipBlock" (dict "cidr" "0.0.0.0/0" "except" (list "10.0.0.0/8" "100.64.0.0/10" "127.0.0.0/8" "169.254.0.0/16" "172.16.0.0/12" "192.168.0.0/16")) -}}
{{- $six := dict "ipBlock" (dict "cidr" "::/0" "except" (list "::1/128" "64:ff9b::/96" "fc00::/7" "fe80::/10")) -}}
{{- $peers = index (dict "ipv4" (list $four) "ipv6" (list $six) "dual" (list $four $six)) .Values.networkPolicy.family -}}
{{- end -}}
{{- toJson $peers -}}
{{- end -}}
