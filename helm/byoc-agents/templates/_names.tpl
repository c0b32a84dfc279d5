{{/* Names, labels and the list of daemons per place. Templates exchange lists and maps as JSON. */}}

{{/*
The name that all objects begin with. At 40 characters, the longest name made of it and the hash that
a StatefulSet's controller appends fit into a label of 63. A name that is cut gets a hash of the whole
one, so that two releases whose names begin alike do not share their objects.
*/}}
{{- define "byoc-agents.name" -}}
{{- $full := contains "byoc-agents" .Release.Name | ternary .Release.Name (printf "%s-byoc-agents" .Release.Name) -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if le (len $full) 40 -}}
{{- $full -}}
{{- else -}}
{{- printf "%s-%s" ($full | trunc 31 | trimSuffix "-") ($full | sha256sum | trunc 8) -}}
{{- end -}}
{{- end -}}

{{- define "byoc-agents.labels" -}}
app.kubernetes.io/name: byoc-agents
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* The pods that hold a role: {"place": "pod" | "deployment", "name": ...}, and the root. */}}
{{- define "byoc-agents.selector" -}}
{{- if eq .role.place "pod" -}}
byoc-agents/sidecars: {{ include "byoc-agents.name" .root }}
{{- else -}}
app.kubernetes.io/name: byoc-agents
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role.name }}
{{- end -}}
{{- end -}}

{{/* The account of ClickHouse's pods, unless they have one. Each Deployment has its own account. */}}
{{- define "byoc-agents.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "byoc-agents.name" .) -}}
{{- end -}}

{{/* Every container of the daemons: name, daemons, port of the status endpoints, place, values, spool. */}}
{{- define "byoc-agents.roles" -}}
{{- $v := .Values -}}
{{- $all := list -}}
{{- if $v.billingScraper.enabled -}}
{{- $all = append $all (dict "name" "billing-scraper" "port" 9464 "place" (ternary "pod" "deployment" (eq $v.billingScraper.placement "sidecar")) "resources" $v.billingScraper.resources "spool" $v.billingScraper.spool) -}}
{{- end -}}
{{- if $v.stateExporter.enabled -}}
{{- $place := ternary "pod" "deployment" (eq $v.stateExporter.placement "sidecar") -}}
{{- $all = append $all (dict "name" "state-exporter" "port" 9465 "place" $place "resources" $v.stateExporter.resources "spool" $v.stateExporter.spool) -}}
{{- end -}}
{{- if $v.alertForwarder.enabled -}}
{{- $place := ternary "pod" "deployment" (eq $v.alertForwarder.placement "sidecar") -}}
{{- $all = append $all (dict "name" "alert-forwarder" "port" 9466 "place" $place "resources" $v.alertForwarder.resources "spool" $v.alertForwarder.spool) -}}
{{- end -}}
{{- $roles := list -}}
{{- $together := list -}}
{{- range $all -}}
{{- $_ := set . "daemons" (list .name) -}}
{{- if and $v.sidecars.oneProcess (eq .place "pod") -}}
{{- $together = append $together .name -}}
{{- else -}}
{{- $roles = append $roles . -}}
{{- end -}}
{{- end -}}
{{- if $together -}}
{{- $roles = append $roles (dict "name" "byoc-agents" "port" 9464 "place" "pod" "resources" $v.sidecars.resources "daemons" $together) -}}
{{- end -}}
{{- toJson $roles -}}
{{- end -}}

{{/* The roles of one place: dict root, place. */}}
{{- define "byoc-agents.rolesIn" -}}
{{- $found := list -}}
{{- $place := .place -}}
{{- range include "byoc-agents.roles" .root | fromJsonArray -}}
{{- if eq .place $place -}}{{- $found = append $found . -}}{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* Not empty if sidecars are init containers with restartPolicy Always. */}}
{{- define "byoc-agents.native" -}}
{{- $can := semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version -}}
{{- if or (eq .Values.sidecars.native "always") (and (eq .Values.sidecars.native "auto") $can) -}}true{{- end -}}
{{- end -}}

{{/* Seconds that the pod needs to stop: ClickHouse, then the drain, then 10 s. */}}
{{- define "byoc-agents.graceSeconds" -}}
{{- $needed := add .Values.clickhouse.stopSeconds .Values.sidecars.shutdownGraceSeconds 10 -}}
{{- .Values.clickhouse.terminationGracePeriodSeconds | default $needed -}}
{{- end -}}

{{/* Not empty if a daemon calls AWS: dict daemons. */}}
{{- define "byoc-agents.callsAws" -}}
{{- if or (has "billing-scraper" .daemons) (has "state-exporter" .daemons) -}}true{{- end -}}
{{- end -}}

{{/* The values of each daemon by its name. */}}
{{- define "byoc-agents.byDaemon" -}}
{{- dict "billing-scraper" .Values.billingScraper "state-exporter" .Values.stateExporter "alert-forwarder" .Values.alertForwarder | toJson -}}
{{- end -}}

{{/* The lists of one field (extraEnv, ...) of all daemons of a role, as one: dict root, role, field. */}}
{{- define "byoc-agents.extra" -}}
{{- $field := .field -}}
{{- $given := include "byoc-agents.byDaemon" .root | fromJson -}}
{{- $found := list -}}
{{- range .role.daemons -}}{{- $found = concat $found (index $given . $field | default list) -}}{{- end -}}
{{- uniq $found | toJson -}}
{{- end -}}

{{/* Where a pod runs and how important it is: dict values, labels (of the pod). */}}
{{- define "byoc-agents.scheduling" -}}
{{- $values := .values -}}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "priorityClassName" }}
{{- with index $values $field }}
{{ $field }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints:
{{- range . }}
  - {{ merge dict . (dict "labelSelector" (dict "matchLabels" $.labels)) | toJson }}
{{- end }}
{{- end }}
{{- end -}}
