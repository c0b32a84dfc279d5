{{/* The environment of a container: dict root, role. `settings` comes last and takes precedence. */}}
{{- define "byoc-agents.env" -}}
{{- $v := .root.Values -}}
{{- $role := .role -}}
{{- $env := dict
  "BYOC_ORGANIZATION_ID" $v.organizationId
  "BYOC_SERVICE_ID" $v.serviceId
  "BYOC_REGION" $v.region
  "BYOC_STATE_DIR" "/var/lib/byoc-agents"
  "BYOC_LISTEN" (printf "%s:%v" $v.sidecars.listenHost $role.port)
  "BYOC_SHUTDOWN_GRACE_SECONDS" $v.sidecars.shutdownGraceSeconds
-}}
{{- if $v.httpsProxy -}}{{- $_ := set $env "BYOC_HTTPS_PROXY" $v.httpsProxy -}}{{- end -}}
{{- if $v.monitoring.tokenSecret.name -}}{{- $_ := set $env "BYOC_METRICS_TOKEN_FILE" "/etc/byoc-agents/metrics/token" -}}{{- end -}}
{{- if $v.caConfigMap -}}{{- $_ := set $env "BYOC_CA_FILE" "/etc/byoc-agents/ca/ca.crt" -}}{{- end -}}
{{- if $v.allowInsecureEndpoints -}}{{- $_ := set $env "BYOC_ALLOW_INSECURE_ENDPOINTS" "true" -}}{{- end -}}
{{- if include "byoc-agents.callsAws" $role -}}{{- $env = merge $env (include "byoc-agents.envAws" .root | fromJson) -}}{{- end -}}
{{- $settings := $v.settings -}}
{{- if has "billing-scraper" $role.daemons -}}
{{- $env = merge $env (include "byoc-agents.envBilling" . | fromJson) -}}
{{- $settings = merge dict $v.billingScraper.settings $settings -}}
{{- end -}}
{{- if has "state-exporter" $role.daemons -}}
{{- $env = merge $env (include "byoc-agents.envState" .root | fromJson) -}}
{{- $settings = merge dict $v.stateExporter.settings $settings -}}
{{- end -}}
{{- if has "alert-forwarder" $role.daemons -}}
{{- $env = merge $env (include "byoc-agents.envAlerts" .root | fromJson) -}}
{{- $settings = merge dict $v.alertForwarder.settings $settings -}}
{{- end -}}
{{- if has "access-broker" $role.daemons -}}
{{- $env = merge $env (include "byoc-agents.envAccess" .root | fromJson) -}}
{{- $settings = merge dict $v.accessBroker.settings $settings -}}
{{- end -}}
{{- range $name, $value := merge dict $settings $env }}
- name: {{ $name }}
  value: {{ toString $value | quote }}
{{- end }}
{{- $apart := and (eq $role.place "deployment") (has "billing-scraper" $role.daemons) -}}
{{- if $apart }}
{{- /* Part of the objects' names: the same after a restart. The pod's uid and limits are not ClickHouse's. */}}
- name: BYOC_REPLICA
  value: {{ printf "%s-%s" (include "byoc-agents.name" .root) $role.name | quote }}
{{- else }}
- name: BYOC_REPLICA
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: BYOC_POD_UID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
{{- end }}
{{- if and (has "billing-scraper" $role.daemons) $v.clickhouse.hasLimits (not $apart) }}
{{- /* For a figure without a limit the downward API gives the node's size: never ask for it. */}}
{{- $limits := default dict $v.clickhouse.resources.limits -}}
{{- $theirs := ne $v.clickhouse.owner "chart" -}}
{{- if and $v.clickhouse.hasCpuLimit (or $theirs (hasKey $limits "cpu")) }}
- name: BYOC_LIMITS_CPU_MILLICORES
  valueFrom: {resourceFieldRef: {containerName: {{ $v.clickhouse.containerName }}, resource: limits.cpu, divisor: 1m}}
{{- end }}
{{- if and $v.clickhouse.hasMemoryLimit (or $theirs (hasKey $limits "memory")) }}
- name: BYOC_LIMITS_MEMORY_BYTES
  valueFrom: {resourceFieldRef: {containerName: {{ $v.clickhouse.containerName }}, resource: limits.memory, divisor: "1"}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "byoc-agents.envAws" -}}
{{- $aws := .Values.aws -}}
{{- $env := dict "AWS_EC2_METADATA_DISABLED" "true" -}}
{{- if eq $aws.identity "irsa" -}}
{{- $_ := set $env "AWS_ROLE_ARN" $aws.roleArn -}}
{{- $_ := set $env "AWS_WEB_IDENTITY_TOKEN_FILE" "/var/run/secrets/byoc-agents/token" -}}
{{- end -}}
{{- if eq $aws.identity "secret" -}}{{- $_ := set $env "AWS_SHARED_CREDENTIALS_FILE" "/etc/byoc-agents/aws/credentials" -}}{{- end -}}
{{- if $aws.endpointUrl -}}{{- $_ := set $env "AWS_ENDPOINT_URL" $aws.endpointUrl -}}{{- end -}}
{{- if $aws.endpointUrlS3 -}}{{- $_ := set $env "AWS_ENDPOINT_URL_S3" $aws.endpointUrlS3 -}}{{- end -}}
{{- if $aws.endpointUrlSqs -}}{{- $_ := set $env "AWS_ENDPOINT_URL_SQS" $aws.endpointUrlSqs -}}{{- end -}}
{{- toJson $env -}}
{{- end -}}

{{/* ClickHouse's URL and user for the daemons that query it: dict root, url. */}}
{{- define "byoc-agents.envClickHouse" -}}
{{- $clickhouse := .root.Values.clickhouse -}}
{{- $env := dict "BYOC_CLICKHOUSE_URL" .url "BYOC_CLICKHOUSE_USER" $clickhouse.user -}}
{{- if $clickhouse.passwordSecret.name -}}{{- $_ := set $env "BYOC_CLICKHOUSE_PASSWORD_FILE" "/etc/byoc-agents/clickhouse/password" -}}{{- end -}}
{{- toJson $env -}}
{{- end -}}

{{/* replica=URL,replica=URL of a map. */}}
{{- define "byoc-agents.serverList" -}}
{{- $pairs := list -}}
{{- range $name, $url := . -}}{{- $pairs = append $pairs (printf "%s=%s" $name $url) -}}{{- end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/* Every record names the source of its figures: dict root, role. */}}
{{- define "byoc-agents.envBilling" -}}
{{- $v := .root.Values -}}
{{- $apart := eq .role.place "deployment" -}}
{{- $url := ternary (include "byoc-agents.serverList" $v.billingScraper.servers) $v.clickhouse.url $apart -}}
{{- $env := include "byoc-agents.envClickHouse" (dict "root" .root "url" $url) | fromJson -}}
{{- $own := and (eq $v.billingScraper.meter "clickhouse") (not $apart) -}}
{{- $_ := set $env "BYOC_BILLING_METER" $v.billingScraper.meter -}}
{{- $_ := set $env "BYOC_BILLING_TARGET" (ternary (printf "clickhouse:%s" $url) ($v.billingScraper.target | default "auto") $own) -}}
{{- $_ := set $env "BYOC_BILLING_BUCKET" $v.billingScraper.bucket -}}
{{- $_ := set $env "BYOC_CONTAINER_NAME" $v.clickhouse.containerName -}}
{{- if $v.billingScraper.bucketOwner -}}{{- $_ := set $env "BYOC_BILLING_BUCKET_OWNER" $v.billingScraper.bucketOwner -}}{{- end -}}
{{- toJson $env -}}
{{- end -}}

{{- define "byoc-agents.envState" -}}
{{- $v := .Values -}}
{{- $url := $v.clickhouse.url -}}
{{- if eq $v.stateExporter.placement "deployment" -}}
{{- $url = include "byoc-agents.serverList" $v.stateExporter.servers -}}
{{- end -}}
{{- $env := include "byoc-agents.envClickHouse" (dict "root" . "url" $url) | fromJson -}}
{{- $_ := set $env "BYOC_STATE_QUEUE_URL" $v.stateExporter.queueUrl -}}
{{- toJson $env -}}
{{- end -}}

{{- define "byoc-agents.envAlerts" -}}
{{- $own := .Values.alertForwarder -}}
{{- $env := dict
  "BYOC_ALERTS_URL" $own.url
  "BYOC_ALERTS_LISTEN" (printf "%s:9095" .Values.sidecars.listenHost)
  "BYOC_ALERTS_TOKEN_FILE" "/etc/byoc-agents/alerts/token"
  "BYOC_ALERTS_SIGNING_SECRET_FILE" "/etc/byoc-agents/alerts/signing-secret"
  "BYOC_ALERTS_WEBHOOK_TOKEN_FILE" "/etc/byoc-agents/alerts/webhook-token"
  "BYOC_ALERTS_FINGERPRINT_SECRET_FILE" "/etc/byoc-agents/alerts/fingerprint-secret"
  "BYOC_ALERTS_NAMESPACE" .Release.Namespace
-}}
{{- if $own.tlsSecretName -}}
{{- $_ := set $env "BYOC_ALERTS_TLS_CERT_FILE" "/etc/byoc-agents/alerts-tls/tls.crt" -}}
{{- $_ := set $env "BYOC_ALERTS_TLS_KEY_FILE" "/etc/byoc-agents/alerts-tls/tls.key" -}}
{{- end -}}
{{- toJson $env -}}
{{- end -}}

{{- define "byoc-agents.envAccess" -}}
{{- $own := .Values.accessBroker -}}
{{- $env := dict
  "BYOC_ACCESS_POLICY_FILE" "/etc/byoc-agents/access/policy.yaml"
  "BYOC_ACCESS_KILL_SWITCH_FILE" "/etc/byoc-agents/access/kill-switch"
  "BYOC_ACCESS_CA_DIR" "/etc/byoc-agents/access-ca"
  "BYOC_ACCESS_SERVERS" (include "byoc-agents.serverList" $own.servers)
  "BYOC_ACCESS_PASSWORD_FILE" "/etc/byoc-agents/access-secret/password"
  "BYOC_ACCESS_EVENTS_URL" $own.eventsUrl
  "BYOC_ACCESS_TOKEN_FILE" "/etc/byoc-agents/access-secret/token"
  "BYOC_ACCESS_SIGNING_SECRET_FILE" "/etc/byoc-agents/access-secret/signing-secret"
-}}
{{- if $own.requestsUrl -}}{{- $_ := set $env "BYOC_ACCESS_REQUESTS_URL" $own.requestsUrl -}}{{- end -}}
{{- with include "byoc-agents.scaledEndpoints" . -}}
{{- $_ := set $env "BYOC_ACCESS_TAILNET" . -}}
{{- $_ := set $env "BYOC_ACCESS_KUBERNETES_URL" $own.kubernetesUrl -}}
{{- $_ := set $env "BYOC_ACCESS_KUBERNETES_DIR" "/var/run/secrets/byoc-agents/kubernetes" -}}
{{- end -}}
{{- toJson $env -}}
{{- end -}}
