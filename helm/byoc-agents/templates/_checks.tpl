{{/* Every mistake that the schema cannot see, all at once. */}}
{{- define "byoc-agents.checks" -}}
{{- $v := .Values -}}
{{- $wrong := list -}}
{{- range $key := list "organizationId" "serviceId" "region" -}}
{{- if not (index $v $key) -}}{{- $wrong = append $wrong (printf "%s: is not set; every record says whose it is" $key) -}}{{- end -}}
{{- end -}}
{{- $roles := include "byoc-agents.roles" . | fromJsonArray -}}
{{- if not $roles -}}{{- $wrong = append $wrong "billingScraper, stateExporter, alertForwarder: enable one" -}}{{- end -}}
{{- if and $v.billingScraper.enabled (not $v.billingScraper.bucket) -}}{{- $wrong = append $wrong "billingScraper.bucket: is not set; wants the vendor's bucket in this region" -}}{{- end -}}
{{- if and $v.stateExporter.enabled (not $v.stateExporter.queueUrl) -}}{{- $wrong = append $wrong "stateExporter.queueUrl: is not set; wants the vendor's FIFO queue" -}}{{- end -}}
{{- if and $v.stateExporter.enabled (eq $v.stateExporter.placement "deployment") (not $v.stateExporter.servers) -}}{{- $wrong = append $wrong "stateExporter.servers: is empty; a Deployment watches replicas by name: URL" -}}{{- end -}}
{{- if $v.alertForwarder.enabled -}}
{{- if not $v.alertForwarder.url -}}{{- $wrong = append $wrong "alertForwarder.url: is not set; wants the control plane's https URL" -}}{{- end -}}
{{- if not $v.alertForwarder.secretName -}}{{- $wrong = append $wrong "alertForwarder.secretName: is not set; wants a Secret with token, signing-secret, webhook-token" -}}{{- end -}}
{{- end -}}
{{- if or $v.billingScraper.enabled $v.stateExporter.enabled -}}
{{- if and (eq $v.aws.identity "irsa") (not $v.aws.roleArn) -}}{{- $wrong = append $wrong "aws.roleArn: is not set; IRSA wants the role of `byoc-agents policy iam` (or set aws.identity)" -}}{{- end -}}
{{- if and (eq $v.aws.identity "secret") (not $v.aws.secretName) -}}{{- $wrong = append $wrong "aws.secretName: is not set; wants a Secret with the key `credentials`, an AWS credentials file" -}}{{- end -}}
{{- end -}}
{{- $needed := add $v.clickhouse.stopSeconds $v.sidecars.shutdownGraceSeconds 10 -}}
{{- with $v.clickhouse.terminationGracePeriodSeconds -}}
{{- if lt (int .) (int $needed) -}}{{- $wrong = append $wrong (printf "clickhouse.terminationGracePeriodSeconds: %v is too short; stopSeconds, the drain and 10 s are %v" . $needed) -}}{{- end -}}
{{- end -}}
{{- if and (eq $v.sidecars.native "always") (not (semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version)) -}}{{- $wrong = append $wrong (printf "sidecars.native: Kubernetes %s has no native sidecars; wants 1.29 (or auto)" .Capabilities.KubeVersion.Version) -}}{{- end -}}
{{- if and (eq $v.sidecars.spool.kind "claim") (has $v.clickhouse.owner (list "bitnami" "other")) (not $v.sidecars.spool.volumeName) -}}{{- $wrong = append $wrong "sidecars.spool: a claim for each pod is its owner's to make; name one of its volumes in volumeName, or take emptyDir" -}}{{- end -}}
{{- if and (eq $v.clickhouse.owner "bitnami") $v.clickhouse.shareProcessNamespace -}}{{- $wrong = append $wrong "clickhouse.shareProcessNamespace: Bitnami's chart cannot share it; set false, ClickHouse's own counters are read then" -}}{{- end -}}
{{- if and $v.sidecars.print (has $v.clickhouse.owner (list "chart" "altinity")) -}}{{- $wrong = append $wrong "sidecars.print: is for clickhouse.owner bitnami or other" -}}{{- end -}}
{{- if not $v.allowInsecureEndpoints -}}
{{- $root := . -}}
{{- range $roles -}}
{{- range include "byoc-agents.urls" (dict "root" $root "role" .) | fromJsonArray -}}
{{- if and (hasPrefix "http:" .url) (not (regexMatch "^http://(127\\.|localhost|169\\.254\\.)" .url)) -}}{{- $wrong = append $wrong (printf "%s: is plain http; wants https (allowInsecureEndpoints is for trials)" .url) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $wrong -}}{{- fail (printf "\n\nbyoc-agents cannot be installed like this:\n  - %s\n" (join "\n  - " (uniq $wrong))) -}}{{- end -}}
{{- end -}}
