{{/* Checks that the schema cannot express. All mistakes are reported at once. */}}
{{- define "byoc-agents.checks" -}}
{{- $v := .Values -}}
{{- $wrong := list -}}
{{- range $key := list "organizationId" "serviceId" "region" -}}
{{- if not (index $v $key) -}}{{- $wrong = append $wrong (printf "%s: is required; it is part of every record" $key) -}}{{- end -}}
{{- end -}}
{{- with $v.ingress -}}{{- if .enabled -}}
{{- if not .hosts -}}{{- $wrong = append $wrong "ingress.hosts: is required: the DNS names of the service" -}}{{- end -}}
{{- if not .allowFrom -}}{{- $wrong = append $wrong "ingress.allowFrom: is required: the networks of the clients" -}}{{- end -}}
{{- range .allowFrom -}}
{{- if and (not (contains ":" .)) (regexMatch "/[1-7]$" .) -}}{{- $wrong = append $wrong (printf "ingress.allowFrom: %s is wider than /8; expected the networks of the clients" .) -}}{{- end -}}
{{- if and (contains ":" .) (regexMatch "/1?[0-9]$" .) (not (regexMatch "^[fF][cCdD]" .)) -}}{{- $wrong = append $wrong (printf "ingress.allowFrom: %s is wider than /20; expected the networks of the clients" .) -}}{{- end -}}
{{- if regexMatch "^(0*:|0*64:ff9b:|2002:)" (lower .) -}}{{- $wrong = append $wrong (printf "ingress.allowFrom: %s contains IPv4 addresses; expected them as IPv4" .) -}}{{- end -}}
{{- end -}}
{{- if not .issuer.name -}}{{- $wrong = append $wrong "ingress.issuer.name: is required: a cert-manager issuer" -}}{{- end -}}
{{- if and (not .clickhouseHost) (ne $v.clickhouse.owner "chart") -}}{{- $wrong = append $wrong "ingress.clickhouseHost: is required: the Service of a ClickHouse that is not the chart's own" -}}{{- end -}}
{{- end -}}{{- end -}}
{{- $roles := include "byoc-agents.roles" . | fromJsonArray -}}
{{- if not $roles -}}{{- $wrong = append $wrong "billingScraper, stateExporter, alertForwarder: at least one must be enabled" -}}{{- end -}}
{{- if and $v.billingScraper.enabled (not $v.billingScraper.bucket) -}}{{- $wrong = append $wrong "billingScraper.bucket: is required: the vendor's bucket in this region" -}}{{- end -}}
{{- if and $v.stateExporter.enabled (not $v.stateExporter.queueUrl) -}}{{- $wrong = append $wrong "stateExporter.queueUrl: is required: the vendor's FIFO queue" -}}{{- end -}}
{{- if and $v.stateExporter.enabled (eq $v.stateExporter.placement "deployment") (not $v.stateExporter.servers) -}}{{- $wrong = append $wrong "stateExporter.servers: is required for placement deployment: one name: URL per replica" -}}{{- end -}}
{{- if $v.alertForwarder.enabled -}}
{{- if not $v.alertForwarder.url -}}{{- $wrong = append $wrong "alertForwarder.url: is required: the control plane's https URL" -}}{{- end -}}
{{- if not $v.alertForwarder.secretName -}}{{- $wrong = append $wrong "alertForwarder.secretName: is required: a Secret with the keys token, signing-secret, webhook-token, fingerprint-secret" -}}{{- end -}}
{{- end -}}
{{- if or $v.billingScraper.enabled $v.stateExporter.enabled -}}
{{- if and (eq $v.aws.identity "irsa") (not $v.aws.roleArn) -}}{{- $wrong = append $wrong "aws.roleArn: is required for IRSA: the role with the policy of `byoc-agents policy iam` (or set aws.identity)" -}}{{- end -}}
{{- if and (eq $v.aws.identity "secret") (not $v.aws.secretName) -}}{{- $wrong = append $wrong "aws.secretName: is required: a Secret whose key `credentials` is an AWS credentials file" -}}{{- end -}}
{{- end -}}
{{- $needed := add $v.clickhouse.stopSeconds $v.sidecars.shutdownGraceSeconds 10 -}}
{{- with $v.clickhouse.terminationGracePeriodSeconds -}}
{{- if lt (int .) (int $needed) -}}{{- $wrong = append $wrong (printf "clickhouse.terminationGracePeriodSeconds: %v is too short; expected at least %v (stopSeconds + shutdownGraceSeconds + 10)" . $needed) -}}{{- end -}}
{{- end -}}
{{- if and (eq $v.sidecars.native "always") (not (semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version)) -}}{{- $wrong = append $wrong (printf "sidecars.native: Kubernetes %s has no native sidecars; expected 1.29 or later, or the value auto" .Capabilities.KubeVersion.Version) -}}{{- end -}}
{{- if and (eq $v.sidecars.spool.kind "claim") (has $v.clickhouse.owner (list "bitnami" "other")) (not $v.sidecars.spool.volumeName) -}}{{- $wrong = append $wrong "sidecars.spool: this chart cannot create a claim for pods of another owner; set volumeName to one of the pod's volumes, or use emptyDir" -}}{{- end -}}
{{- if and (eq $v.clickhouse.owner "bitnami") (include "byoc-agents.sharesProcesses" .) -}}{{- $wrong = append $wrong (printf "billingScraper.meter: Bitnami's chart does not support a shared process namespace, which %s needs; expected clickhouse" $v.billingScraper.meter) -}}{{- end -}}
{{- if and $v.billingScraper.enabled (eq $v.billingScraper.placement "deployment") -}}
{{- if not $v.billingScraper.servers -}}{{- $wrong = append $wrong "billingScraper.servers: is required for placement deployment: one name: URL per replica" -}}{{- end -}}
{{- if ne $v.billingScraper.meter "clickhouse" -}}{{- $wrong = append $wrong (printf "billingScraper.meter: %s needs ClickHouse's pod; expected clickhouse for placement deployment" $v.billingScraper.meter) -}}{{- end -}}
{{- end -}}
{{- if and (eq $v.billingScraper.meter "clickhouse") $v.billingScraper.target -}}{{- $wrong = append $wrong "billingScraper.target: names a process; expected the meter process or cgroup" -}}{{- end -}}
{{- $places := list "nodeSelector" "tolerations" "affinity" "priorityClassName" "podLabels" "podAnnotations" "topologySpreadConstraints" -}}
{{- range $name := list "billingScraper" "stateExporter" "alertForwarder" "clickhouse" -}}
{{- $given := index $v $name -}}
{{- $why := eq $name "clickhouse" | ternary (printf "owner %s: its owner sets it" $v.clickhouse.owner) "placement sidecar: the pod is ClickHouse's" -}}
{{- if eq $name "clickhouse" | ternary (ne $v.clickhouse.owner "chart") (eq (toString $given.placement) "sidecar") -}}
{{- range $places -}}{{- if index $given . -}}{{- $wrong = append $wrong (printf "%s.%s: has no effect for %s" $name . $why) -}}{{- end -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $named := $v.clickhouse.serviceAccountName -}}
{{- if and $named (eq $v.aws.identity "podIdentity") (include "byoc-agents.awsInPod" .) -}}{{- $wrong = append $wrong (printf "aws.identity: EKS associates one role with the account %s of clickhouse.serviceAccountName, for all containers of the pod; expected irsa" $named) -}}{{- end -}}
{{- if and (eq $v.clickhouse.owner "altinity") (not $named) (not $v.serviceAccount.name) (include "byoc-agents.rolesIn" (dict "root" . "place" "pod") | fromJsonArray) -}}{{- $wrong = append $wrong "clickhouse.serviceAccountName: is required for owner altinity: the account of ClickHouse's pods, which the operator would replace by the template's; or, if they have none of their own, serviceAccount.name: the account that they get" -}}{{- end -}}
{{- if and $v.sidecars.print (has $v.clickhouse.owner (list "chart" "altinity")) -}}{{- $wrong = append $wrong "sidecars.print: is for clickhouse.owner bitnami or other" -}}{{- end -}}
{{- if not $v.allowInsecureEndpoints -}}
{{- $root := . -}}
{{- range $roles -}}
{{- range include "byoc-agents.urls" (dict "root" $root "role" .) | fromJsonArray -}}
{{- if and (hasPrefix "http:" .url) (not (regexMatch "^http://(127\\.|localhost|169\\.254\\.|\\[fd00:ec2::23\\])" .url)) -}}{{- $wrong = append $wrong (printf "%s: is plain http; expected https (allowInsecureEndpoints permits it for trials)" .url) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $v.image.requireDigest -}}
{{- range $roles -}}
{{- if not (index $v.image.digests .name) -}}{{- $wrong = append $wrong (printf "image.digests.%s: is required by image.requireDigest; expected sha256: and 64 hex digits" .name) -}}{{- end -}}
{{- end -}}
{{- if and (has $v.clickhouse.owner (list "chart" "altinity")) (not (regexMatch "@sha256:[0-9a-f]{64}$" $v.clickhouse.image)) -}}{{- $wrong = append $wrong (printf "clickhouse.image: %s has no digest, which image.requireDigest requires; expected NAME@sha256:DIGEST" $v.clickhouse.image) -}}{{- end -}}
{{- end -}}
{{- $wrong = concat $wrong (include "byoc-agents.sharedPolicies" . | fromJsonArray) -}}
{{- $wrong = concat $wrong (include "byoc-agents.wideRules" . | fromJsonArray) -}}
{{- if $v.sidecars.egressRules.enabled -}}{{- $wrong = concat $wrong (include "byoc-agents.egressRulesChecks" . | fromJsonArray) -}}{{- end -}}
{{- $wrong = concat $wrong (include "byoc-agents.tailnetChecks" . | fromJsonArray) -}}
{{- $wrong = concat $wrong (include "byoc-agents.claimChanges" . | fromJsonArray) -}}
{{- if $wrong -}}{{- fail (printf "\n\nbyoc-agents cannot be installed with these values:\n  - %s\n" (join "\n  - " (uniq $wrong))) -}}{{- end -}}
{{- end -}}


{{/* Not empty if a sidecar calls AWS with the identity of ClickHouse's pod. */}}
{{- define "byoc-agents.awsInPod" -}}
{{- range include "byoc-agents.rolesIn" (dict "root" . "place" "pod") | fromJsonArray -}}
{{- include "byoc-agents.callsAws" . -}}
{{- end -}}
{{- end -}}

{{/*
A policy that selects the pod of the chart's own ClickHouse opens the sidecars' destinations for ClickHouse
too. The customer has to say so, unless rules by uid refuse them to ClickHouse.
*/}}
{{- define "byoc-agents.sharedPolicies" -}}
{{- $v := .Values -}}
{{- $wrong := list -}}
{{- $sidecars := list -}}
{{- range include "byoc-agents.rolesIn" (dict "root" . "place" "pod") | fromJsonArray -}}{{- $sidecars = concat $sidecars .daemons -}}{{- end -}}
{{- if and $sidecars (eq $v.clickhouse.owner "chart") (or $v.networkPolicy.enabled $v.networkPolicy.cilium) (not $v.networkPolicy.selectClickHouse) (not $v.sidecars.egressRules.enabled) -}}
{{- $wrong = append $wrong (printf "networkPolicy.selectClickHouse: is required for clickhouse.owner chart with sidecars (%s): a policy selects the whole pod, so the addresses and the resolver that it opens for them are open for ClickHouse too; expected true, which permits that, or sidecars.egressRules.enabled: true, which refuses ClickHouse TCP connections to these addresses by its uid, or placement: deployment for every daemon" (join ", " $sidecars)) -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{/* Mistakes in the addresses of the policies: all addresses at once need networkPolicy.wide. */}}
{{- define "byoc-agents.wideRules" -}}
{{- $root := . -}}
{{- $policy := .Values.networkPolicy -}}
{{- $wrong := list -}}
{{- if and (or $policy.enabled $policy.cilium) (not $policy.wide) -}}
{{- $given := dict "dns" $policy.dns -}}
{{- range $name, $cidrs := $policy.cidrs -}}{{- $_ := set $given (printf "cidrs.%s" $name) $cidrs -}}{{- end -}}
{{- range $name, $cidrs := $given -}}
{{- range $cidrs -}}{{- if include "byoc-agents.isWide" . -}}{{- $wrong = append $wrong (printf "networkPolicy.%s: %s is wider than /8 (IPv6: /24, or /104 if it embeds IPv4), or within 0.0.0.0/8; expected narrower addresses, or networkPolicy.wide: true" $name .) -}}{{- end -}}{{- end -}}
{{- end -}}
{{- range include "byoc-agents.roles" . | fromJsonArray -}}
{{- if and $policy.enabled (include "byoc-agents.hasPolicy" (dict "root" $root "role" .)) -}}
{{- range include "byoc-agents.flows" (dict "root" $root "role" .) | fromJsonArray -}}
{{- if and (eq .place "beyond") (not .cidrs) -}}{{- $wrong = append $wrong (printf "networkPolicy.cidrs.%s: is required: the addresses of %s, since a NetworkPolicy cannot contain names (or networkPolicy.wide: true for any address; or enabled: false with cilium: true)" .kind .host) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{/* Mistakes in sidecars.egressRules, and values with which the rules cannot hold what they state. */}}
{{- define "byoc-agents.egressRulesChecks" -}}
{{- $v := .Values -}}
{{- $given := $v.sidecars.egressRules -}}
{{- $wrong := list -}}
{{- $roles := include "byoc-agents.rolesIn" (dict "root" . "place" "pod") | fromJsonArray -}}
{{- if not $roles -}}{{- $wrong = append $wrong "sidecars.egressRules: no daemon is a sidecar; expected enabled: false" -}}{{- end -}}
{{- if not $given.image -}}{{- $wrong = append $wrong "sidecars.egressRules.image: is required: an image of yours that has the program nft" -}}
{{- else if and $v.image.requireDigest (not (regexMatch "@sha256:[0-9a-f]{64}$" $given.image)) -}}{{- $wrong = append $wrong (printf "sidecars.egressRules.image: %s has no digest, which image.requireDigest requires; expected NAME@sha256:DIGEST" $given.image) -}}{{- end -}}
{{- if $v.openshift -}}{{- $wrong = append $wrong "sidecars.egressRules: OpenShift gives all containers of a namespace one uid, by which the rules cannot tell them apart; expected enabled: false" -}}{{- end -}}
{{- if $v.istio.enabled -}}{{- $wrong = append $wrong "sidecars.egressRules: with istio.enabled the mesh's proxy connects for all containers, under a uid of its own; expected enabled: false" -}}{{- end -}}
{{- if eq (int $v.clickhouse.runAsUser) 65532 -}}{{- $wrong = append $wrong "clickhouse.runAsUser: 65532 is the uid of the sidecars, by which sidecars.egressRules tells them from ClickHouse; expected another one" -}}{{- end -}}
{{- range $roles -}}
{{- if and (has "billing-scraper" .daemons) (eq $v.billingScraper.meter "cgroup") -}}{{- $wrong = append $wrong "billingScraper.meter: cgroup gives the scraper ClickHouse's uid, by which sidecars.egressRules cannot tell it from ClickHouse; expected process or clickhouse" -}}{{- end -}}
{{- end -}}
{{- $known := list -}}
{{- range include "byoc-agents.podFlows" . | fromJsonArray -}}
{{- $known = concat $known (list .kind .host) -}}
{{- if not .cidrs -}}{{- $wrong = append $wrong (printf "networkPolicy.cidrs.%s: is required by sidecars.egressRules: the addresses of %s" .kind .host) -}}{{- end -}}
{{- if and (not .literal) (not $given.dns) -}}{{- $wrong = append $wrong "sidecars.egressRules.dns: is required: the resolvers of the pods' /etc/resolv.conf" -}}{{- end -}}
{{- end -}}
{{- range $given.also -}}
{{- if not (or (contains "/" .) (has . $known)) -}}{{- $wrong = append $wrong (printf "sidecars.egressRules.also: no destination of the sidecars is %s; expected a CIDR, or one of %s" . (uniq $known | join ", ")) -}}{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{/*
Mistakes in an upgrade of the chart's own ClickHouse: Kubernetes lets nobody change the
volumeClaimTemplates of a StatefulSet, and its own message names no remedy. `lookup` finds nothing
without a cluster (`helm template`, `helm lint`).
*/}}
{{- define "byoc-agents.claimChanges" -}}
{{- $v := .Values -}}
{{- $wrong := list -}}
{{- if eq $v.clickhouse.owner "chart" -}}
{{- $name := printf "%s-clickhouse" (include "byoc-agents.name" .) -}}
{{- $found := lookup "apps/v1" "StatefulSet" .Release.Namespace $name -}}
{{- if $found -}}
{{- $wanted := dict "data" (include "byoc-agents.claimText" $v.clickhouse.storage) -}}
{{- if and (eq $v.sidecars.spool.kind "claim") (not $v.sidecars.spool.volumeName) -}}{{- $_ := set $wanted "byoc-spool" (include "byoc-agents.claimText" $v.sidecars.spool) -}}{{- end -}}
{{- $present := dict -}}
{{- range $found.spec.volumeClaimTemplates -}}
{{- $claim := dict "size" (dig "spec" "resources" "requests" "storage" "" .) "storageClassName" (dig "spec" "storageClassName" "" .) -}}
{{- $_ := set $present .metadata.name (include "byoc-agents.claimText" $claim) -}}
{{- end -}}
{{- range $claim, $value := dict "data" "clickhouse.storage" "byoc-spool" "sidecars.spool" -}}
{{- $had := index $present $claim | default "no claim" -}}
{{- $has := index $wanted $claim | default "no claim" -}}
{{- if ne $had $has -}}{{- $wrong = append $wrong (printf "%s: an upgrade cannot change the claim %s of StatefulSet %s from %s to %s; expected the same, or first: kubectl -n %s delete statefulset %s --cascade=orphan (its pods and claims stay; an existing claim keeps its size)" $value $claim $name $had $has $.Release.Namespace $name) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{/* A claim as text that compares: the API server writes 1024Mi as 1Gi. dict size, storageClassName. */}}
{{- define "byoc-agents.claimText" -}}
{{- $units := dict "" 1 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $bytes := mul (regexFind "^[0-9]+" .size | int64) (index $units (regexReplaceAll "^[0-9]+" .size "") | default 1) -}}
{{- printf "%d bytes of storage class %s" $bytes (.storageClassName | default "(default)") -}}
{{- end -}}

{{/* Whether a CIDR is wide: IPv6 prefixes that embed IPv4 addresses (NAT64, mapped) by the inner width. */}}
{{- define "byoc-agents.isWide" -}}
{{- $wide := or (regexMatch "/0*[0-7]$" .) (regexMatch "^0+[.]" .) -}}
{{- if contains ":" . -}}
{{- $wide = regexMatch "/0*([0-9]|1[0-9]|2[0-3])$" . -}}
{{- if regexMatch "(?i)^(0*64:0*ff9b:|[0:]*:)" . -}}{{- $wide = regexMatch "/0*([0-9]{1,2}|10[0-3])$" . -}}{{- end -}}
{{- end -}}
{{- if $wide -}}true{{- end -}}
{{- end -}}
