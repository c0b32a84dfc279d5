{{/*
What a ClickHouse pod needs to hold the sidecars, whoever owns the pod; all take the root.
`sidecars` is a list of containers: for `initContainers` where they are native, else for `containers`.
*/}}
{{- define "byoc-agents.sidecars" -}}
{{- $root := . -}}
{{- range include "byoc-agents.rolesIn" (dict "root" . "place" "pod") | fromJsonArray }}
- {{ include "byoc-agents.container" (dict "root" $root "role" .) | nindent 2 | trim }}
{{- end }}
{{- end -}}

{{/* The init containers of ClickHouse's pod: the rules first, then the sidecars where they are native. */}}
{{- define "byoc-agents.initContainers" -}}
{{- if .Values.sidecars.egressRules.enabled }}
- {{ include "byoc-agents.egressRulesContainer" . | nindent 2 | trim }}
{{- end }}
{{- if include "byoc-agents.native" . }}
{{- include "byoc-agents.sidecars" . }}
{{- end }}
{{- end -}}

{{/*
Loads the rules into the pod's network namespace and ends. Their text is an argument, so the pod itself
shows the rules that it has, and its owner replaces it when they change.
*/}}
{{- define "byoc-agents.egressRulesContainer" -}}
{{- $rules := .Values.sidecars.egressRules -}}
name: byoc-egress-rules
image: {{ $rules.image }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [nft]
args:
  - |
    {{- include "byoc-agents.egressRules" . | nindent 4 }}
securityContext:
  # The one container with rights of root, and over the pod's own network only.
  runAsNonRoot: false
  runAsUser: 0
  runAsGroup: 0
  seccompProfile: {type: RuntimeDefault}
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL], add: [NET_ADMIN]}
resources:
  {{- toYaml $rules.resources | nindent 2 }}
{{- end -}}

{{/* Volumes of all sidecars, each once, and the spool if it is an emptyDir. */}}
{{- define "byoc-agents.sidecarVolumes" -}}
{{- $root := . -}}
{{- $seen := list -}}
{{- $spool := .Values.sidecars.spool -}}
{{- if and (eq $spool.kind "emptyDir") (not $spool.volumeName) }}
- name: byoc-spool
  emptyDir: {sizeLimit: {{ $spool.size }}}
{{- end }}
{{- range include "byoc-agents.rolesIn" (dict "root" . "place" "pod") | fromJsonArray }}
{{- $extra := include "byoc-agents.extra" (dict "root" $root "role" . "field" "extraVolumes") | fromJsonArray }}
{{- range concat (include "byoc-agents.volumes" (dict "root" $root "role" .) | fromYamlArray) $extra }}
{{- if not (has .name $seen) }}
- {{ toYaml . | nindent 2 | trim }}
{{- $seen = append $seen .name }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Labels and annotations of a pod with sidecars. */}}
{{- define "byoc-agents.podLabels" -}}
byoc-agents/sidecars: {{ include "byoc-agents.name" . }}
{{- end -}}

{{/* For a mesh: dict root, place. The kubelet and Prometheus connect by plain HTTP. */}}
{{- define "byoc-agents.podAnnotations" -}}
{{- if .root.Values.istio.enabled -}}
{{- $ports := list -}}
{{- $aws := false -}}
{{- range .roles -}}
{{- $ports = append $ports (toString .port) -}}
{{- if include "byoc-agents.callsAws" . -}}{{- $aws = true -}}{{- end -}}
{{- end -}}
traffic.sidecar.istio.io/excludeInboundPorts: {{ join "," $ports | quote }}
{{- if and $aws (eq .root.Values.aws.identity "podIdentity") }}
traffic.sidecar.istio.io/excludeOutboundIPRanges: {{ eq .root.Values.networkPolicy.family "ipv6" | ternary "fd00:ec2::23/128" "169.254.170.23/32" }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Fields of the pod. */}}
{{- define "byoc-agents.podSpec" -}}
serviceAccountName: {{ .Values.clickhouse.serviceAccountName | default (include "byoc-agents.serviceAccount" .) }}
automountServiceAccountToken: false
{{- if include "byoc-agents.sharesProcesses" . }}
shareProcessNamespace: true
{{- end }}
terminationGracePeriodSeconds: {{ include "byoc-agents.graceSeconds" . }}
securityContext:
  {{- include "byoc-agents.podSecurityContext" (dict "root" . "role" (include "byoc-agents.clickhouseRole" . | fromJson)) | nindent 2 }}
{{- end -}}

{{/* Not empty if the meter reads ClickHouse's processes. */}}
{{- define "byoc-agents.sharesProcesses" -}}
{{- if and .Values.billingScraper.enabled (eq .Values.billingScraper.placement "sidecar") (ne .Values.billingScraper.meter "clickhouse") -}}true{{- end -}}
{{- end -}}

{{- define "byoc-agents.podSecurityContext" -}}
{{ include "byoc-agents.ids" . }}
{{- if not .root.Values.openshift }}
fsGroup: {{ eq .role.place "pod" | ternary .root.Values.clickhouse.runAsGroup 65532 }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
{{- end -}}

{{- define "byoc-agents.claimSpec" -}}
accessModes: [ReadWriteOnce]
{{- with .storageClassName }}
storageClassName: {{ . }}
{{- end }}
resources: {requests: {storage: {{ .size }}}}
{{- end -}}
