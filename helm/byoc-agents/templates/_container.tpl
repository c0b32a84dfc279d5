{{/*
The one template of a daemon's container, as a sidecar and in a Deployment: dict root, role.

As a sidecar it has no readinessProbe, since that would be the readiness of ClickHouse's pod, and
no startupProbe, since a native sidecar's holds back the containers after it. The livenessProbe
restarts this container alone. Requests equal limits: a Guaranteed pod stays Guaranteed.
*/}}
{{- define "byoc-agents.container" -}}
{{- $v := .root.Values -}}
{{- $role := .role -}}
{{- $sidecar := eq $role.place "pod" -}}
name: {{ $role.name }}
image: {{ include "byoc-agents.image" . }}
imagePullPolicy: {{ $v.image.pullPolicy }}
{{- if and $sidecar (include "byoc-agents.native" .root) }}
restartPolicy: Always
{{- end }}
args: {{ concat (list "run") $role.daemons | toJson }}
env:
  {{- include "byoc-agents.env" . | trim | nindent 2 }}
  {{- range include "byoc-agents.extra" (dict "root" .root "role" $role "field" "extraEnv") | fromJsonArray }}
  - {{ toJson . }}
  {{- end }}
ports:
  - {name: {{ include "byoc-agents.portName" $role }}, containerPort: {{ $role.port }}, protocol: TCP}
  {{- if has "alert-forwarder" $role.daemons }}
  - {name: byoc-webhook, containerPort: 9095, protocol: TCP}
  {{- end }}
livenessProbe:
  httpGet: {path: /healthz, port: {{ $role.port }}}
  initialDelaySeconds: 15
  periodSeconds: 15
  timeoutSeconds: 5
  failureThreshold: 6
{{- if not $sidecar }}
readinessProbe:
  httpGet: {path: /readyz, port: {{ $role.port }}}
  periodSeconds: 10
  timeoutSeconds: 5
{{- end }}
securityContext:
  {{- include "byoc-agents.securityContext" . | nindent 2 }}
resources:
  {{- toYaml $role.resources | nindent 2 }}
volumeMounts:
  - {name: {{ include "byoc-agents.spoolVolume" . }}, mountPath: /var/lib/byoc-agents{{ if and $sidecar $v.sidecars.spool.volumeName }}, subPath: byoc-agents{{ end }}}
  {{- range include "byoc-agents.volumes" . | fromYamlArray }}
  - {name: {{ .name }}, mountPath: {{ eq .name "byoc-token" | ternary "/var/run/secrets/byoc-agents" (printf "/etc/byoc-agents/%s" (trimPrefix "byoc-" .name)) }}, readOnly: true}
  {{- end }}
  {{- range include "byoc-agents.extra" (dict "root" .root "role" $role "field" "extraVolumeMounts") | fromJsonArray }}
  - {{ toJson . }}
  {{- end }}
{{- end -}}

{{- define "byoc-agents.image" -}}
{{- $image := .root.Values.image -}}
{{- $name := printf "%s/%s" $image.repository .role.name -}}
{{- with index $image.digests .role.name -}}
{{- printf "%s@%s" $name . -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default $.root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "byoc-agents.portName" -}}
{{- $first := index (splitList "-" .name) 0 -}}
{{- eq .name "byoc-agents" | ternary .name (printf "byoc-%s" $first) -}}
{{- end -}}

{{/*
A sidecar differs from ClickHouse in uid and gid, so the kernel refuses it ClickHouse's files, memory
and environment. Only the meter `cgroup` needs ClickHouse's ids, for /proc/PID/root. dict root, role;
the role "clickhouse" is ClickHouse itself.
*/}}
{{- define "byoc-agents.ids" -}}
{{- $same := eq .role.name "clickhouse" -}}
{{- if and (eq .role.place "pod") (has "billing-scraper" .role.daemons) (eq .root.Values.billingScraper.meter "cgroup") -}}{{- $same = true -}}{{- end -}}
runAsNonRoot: true
{{- if not .root.Values.openshift }}
runAsUser: {{ $same | ternary .root.Values.clickhouse.runAsUser 65532 }}
runAsGroup: {{ $same | ternary .root.Values.clickhouse.runAsGroup 65532 }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* ClickHouse as a role. */}}
{{- define "byoc-agents.clickhouseRole" -}}
{{- dict "name" "clickhouse" "place" "pod" "daemons" list | toJson -}}
{{- end -}}

{{- define "byoc-agents.securityContext" -}}
{{ include "byoc-agents.ids" . }}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "byoc-agents.spoolVolume" -}}
{{- if eq .role.place "pod" -}}{{- .root.Values.sidecars.spool.volumeName | default "byoc-spool" -}}{{- else -}}byoc-spool{{- end -}}
{{- end -}}

{{/*
The mode of the files of Secrets and tokens: dict root, role. 288 is 0440, of root and the pod's fsGroup,
of which the kubelet makes every container of the pod a member. Without an fsGroup the group is root, so
288 is only for pods whose fsGroup this chart sets. OpenShift's depends on the SCC that admits the pod,
and that of a printed pod on the chart or operator that owns it: those have 292, which is 0444. The
kubelet gives a token 0600 and then the fsGroup's 0440 where there is one, whatever the mode here.
*/}}
{{- define "byoc-agents.secretMode" -}}
{{- $ours := or (ne .role.place "pod") (has .root.Values.clickhouse.owner (list "chart" "altinity")) -}}
{{- and $ours (not .root.Values.openshift) | ternary 288 292 -}}
{{- end -}}

{{/* The volumes of a role except its spool. Only the daemons' containers mount them. */}}
{{- define "byoc-agents.volumes" -}}
{{- $v := .root.Values -}}
{{- $daemons := .role.daemons -}}
{{- $aws := include "byoc-agents.callsAws" .role -}}
{{- $mode := include "byoc-agents.secretMode" . -}}
{{- if has "alert-forwarder" $daemons }}
- name: byoc-alerts
  secret: {secretName: {{ $v.alertForwarder.secretName }}, defaultMode: {{ $mode }}}
{{- with $v.alertForwarder.tlsSecretName }}
- name: byoc-alerts-tls
  secret: {secretName: {{ . }}, defaultMode: {{ $mode }}}
{{- end }}
{{- end }}
{{- if and $aws $v.clickhouse.passwordSecret.name }}
- name: byoc-clickhouse
  secret:
    secretName: {{ $v.clickhouse.passwordSecret.name }}
    defaultMode: {{ $mode }}
    items: [{key: {{ $v.clickhouse.passwordSecret.key }}, path: password}]
{{- end }}
{{- if and $aws (eq $v.aws.identity "secret") }}
- name: byoc-aws
  secret:
    secretName: {{ $v.aws.secretName }}
    defaultMode: {{ $mode }}
    items: [{key: credentials, path: credentials}]
{{- end }}
{{- if and $aws (eq $v.aws.identity "irsa") }}
- name: byoc-token
  projected:
    defaultMode: {{ $mode }}
    sources: [{serviceAccountToken: {audience: byoc-agents, expirationSeconds: 3600, path: token}}]
{{- end }}
{{- with $v.monitoring.tokenSecret }}
{{- if .name }}
- name: byoc-metrics
  secret: {secretName: {{ .name }}, defaultMode: {{ $mode }}, items: [{key: {{ .key }}, path: token}]}
{{- end }}
{{- end }}
{{- if $v.caConfigMap }}
- name: byoc-ca
  configMap: {name: {{ $v.caConfigMap }}, defaultMode: 292, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- end -}}
