{{- define "foldwise.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- /* At most 40 characters, so that the longest suffix and the suffix of a Job's pod still fit in 63. */}}
{{- define "foldwise.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "foldwise.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "foldwise.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Labels that select pods. No version: it would change on upgrade. dict: root, component */}}
{{- define "foldwise.selector" -}}
app.kubernetes.io/name: {{ include "foldwise.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "foldwise.labels" -}}
{{ include "foldwise.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: foldwise
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Labels of a pod. No version: an upgrade would change it, and Jobs are immutable. dict: root, component, extra */}}
{{- define "foldwise.podLabels" -}}
{{ include "foldwise.selector" . }}
app.kubernetes.io/part-of: foldwise
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with .extra }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "foldwise.image" -}}
{{- $registry := default .root.Values.global.imageRegistry .image.registry -}}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ default .root.Chart.AppVersion .image.tag }}{{ end }}
{{- end }}

{{- define "foldwise.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "foldwise.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- /* Affinity of a pod that mounts the cache. With cache.singleNode it requires the coordinator's node.
dict: root, affinity, component */}}
{{- define "foldwise.affinity" -}}
{{- $affinity := deepCopy .affinity }}
{{- if and .root.Values.cache.singleNode (ne .component "coordinator") }}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (include "foldwise.selector" (dict "root" .root "component" "coordinator") | fromYaml)) }}
{{- $terms := concat (list $term) (dig "podAffinity" "requiredDuringSchedulingIgnoredDuringExecution" list $affinity) }}
{{- $pod := merge (dict "requiredDuringSchedulingIgnoredDuringExecution" $terms) (dig "podAffinity" dict $affinity) }}
{{- $_ := set $affinity "podAffinity" $pod }}
{{- end }}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Pod settings of the profile "restricted" of the Pod Security Standards. */}}
{{- define "foldwise.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "foldwise.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- /* The root file system is read-only, so HOME and all caches are in /tmp. */}}
{{- define "foldwise.writableEnv" -}}
- {name: HOME, value: /tmp}
- {name: XDG_CACHE_HOME, value: /tmp/cache}
- {name: XDG_DATA_HOME, value: /tmp/data}
- {name: MPLCONFIGDIR, value: /tmp/cache/matplotlib}
{{- end }}

{{- define "foldwise.url" -}}
http://{{ include "foldwise.fullname" . }}:{{ .Values.coordinator.service.port }}
{{- end }}

{{- define "foldwise.authSecret" -}}
{{- default (printf "%s-auth" (include "foldwise.fullname" .)) .Values.auth.existingSecret }}
{{- end }}

{{- define "foldwise.databaseSecret" -}}
{{- if .Values.postgresql.enabled }}
{{- default (printf "%s-postgresql" (include "foldwise.fullname" .)) .Values.postgresql.auth.existingSecret }}
{{- else }}
{{- .Values.externalDatabase.existingSecret }}
{{- end }}
{{- end }}

{{- define "foldwise.databaseKey" -}}
{{- if .Values.postgresql.enabled }}uri{{ else }}{{ .Values.externalDatabase.key }}{{ end }}
{{- end }}

{{- define "foldwise.dashboardDatabaseKey" -}}
{{- if .Values.postgresql.enabled }}dashboard-uri{{ else }}{{ .Values.externalDatabase.dashboardKey }}{{ end }}
{{- end }}

{{- define "foldwise.cacheClaim" -}}
{{- default (printf "%s-cache" (include "foldwise.fullname" .)) .Values.cache.existingClaim }}
{{- end }}

{{- define "foldwise.artifactsClaim" -}}
{{- default (printf "%s-artifacts" (include "foldwise.fullname" .)) .Values.artifacts.existingClaim }}
{{- end }}

{{- /* spec of a PersistentVolumeClaim. dict: accessModes, size, storageClass, volumeName */}}
{{- define "foldwise.claimSpec" -}}
accessModes:
  {{- toYaml .accessModes | nindent 2 }}
resources:
  requests:
    storage: {{ .size }}
{{- if eq .storageClass "-" }}
storageClassName: ""
{{- else if .storageClass }}
storageClassName: {{ .storageClass }}
{{- end }}
{{- with .volumeName }}
volumeName: {{ . }}
{{- end }}
{{- end }}

{{- /* A password or token: the given one, else the one in the cluster's Secret, else a new one.
dict: root, secret, key, given, value (its name in values.yaml), existing (the name of its existingSecret) */}}
{{- define "foldwise.secretValue" -}}
{{- if .given }}
{{- .given }}
{{- else }}
{{- $found := lookup "v1" "Secret" .root.Release.Namespace .secret }}
{{- $stored := index (default dict (default dict $found).data) .key }}
{{- if $stored }}
{{- $stored | b64dec }}
{{- else if include "foldwise.connected" .root }}
{{- randAlphaNum 40 }}
{{- else }}
{{- fail (printf "%s is empty, and without access to a cluster (helm template, GitOps, --dry-run=client) Helm cannot keep a generated secret: set %s to the name of a Secret, or set %s" .value .existing .value) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* "yes" if Helm is connected to a cluster: an API server lists kinds, `helm template` knows only groups and versions. */}}
{{- define "foldwise.connected" -}}
{{- if .Capabilities.APIVersions.Has "v1/Secret" }}yes{{ end }}
{{- end }}

{{- define "foldwise.workerAccount" -}}
{{- include "foldwise.fullname" . }}-worker
{{- end }}

{{- /* URL of Optuna's dashboard for people; empty if it has no host. */}}
{{- define "foldwise.dashboardUrl" -}}
{{- if and .Values.dashboard.enabled .Values.ingress.enabled .Values.ingress.dashboardHost -}}
{{ ternary "https" "http" (not (empty .Values.ingress.tls)) }}://{{ .Values.ingress.dashboardHost }}/
{{- else if and .Values.dashboard.enabled .Values.httpRoute.enabled .Values.httpRoute.dashboardHostnames -}}
https://{{ first .Values.httpRoute.dashboardHostnames }}/
{{- end }}
{{- end }}
