{{- /* What the schema cannot say: a sentence for each, before anything is installed. */}}
{{- define "foldwise.checks" -}}
{{- $v := .Values }}
{{- if and (not $v.postgresql.enabled) (not $v.externalDatabase.existingSecret) }}
{{- fail "postgresql.enabled is false and externalDatabase.existingSecret is empty: name a Secret with the database's URL" }}
{{- end }}
{{- if and $v.postgresql.enabled $v.externalDatabase.existingSecret }}
{{- fail (printf "externalDatabase.existingSecret is %q and postgresql.enabled is true: set postgresql.enabled=false to use it" $v.externalDatabase.existingSecret) }}
{{- end }}
{{- range $name, $volume := dict "cache" $v.cache "artifacts" $v.artifacts }}
{{- $used := or (eq $name "cache") $v.artifacts.enabled }}
{{- if and $used (not $volume.existingClaim) (not $v.cache.singleNode) (not (or (has "ReadWriteMany" $volume.accessModes) (has "ReadOnlyMany" $volume.accessModes))) }}
{{- fail (printf "%s.accessModes is %v, so its volume can be mounted on one node only, but coordinator, workers and preprocessing may run on many: use a storage class with ReadWriteMany, or set cache.singleNode=true to keep them all on one node" $name $volume.accessModes) }}
{{- end }}
{{- end }}
{{- if and $v.cache.singleNode (gt (int $v.coordinator.replicas) 1) }}
{{- fail (printf "coordinator.replicas is %d and cache.singleNode is true: two coordinators on one node protect from nothing; set coordinator.replicas=1" (int $v.coordinator.replicas)) }}
{{- end }}
{{- if and $v.worker.deployment.keda.enabled (not $v.worker.deployment.enabled) }}
{{- fail "worker.deployment.keda.enabled is true and worker.deployment.enabled is false: KEDA scales the Deployment; set worker.deployment.enabled=true" }}
{{- end }}
{{- if gt (int $v.worker.deployment.keda.minReplicas) (int $v.worker.deployment.keda.maxReplicas) }}
{{- fail (printf "worker.deployment.keda.minReplicas is %d, above maxReplicas, %d" (int $v.worker.deployment.keda.minReplicas) (int $v.worker.deployment.keda.maxReplicas)) }}
{{- end }}
{{- if and $v.worker.kueue.minParallelism (not $v.worker.kueue.queueName) }}
{{- fail "worker.kueue.minParallelism is set and worker.kueue.queueName is empty: partial admission needs a queue" }}
{{- end }}
{{- $names := list }}
{{- range $v.preprocessing.datasets }}
{{- if has .name $names }}
{{- fail (printf "preprocessing.datasets has the name %q twice" .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- if and $v.ingress.enabled (not $v.ingress.host) }}
{{- fail "ingress.enabled is true and ingress.host is empty: name the coordinator's host" }}
{{- end }}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled is true and httpRoute.parentRefs is empty: name a Gateway" }}
{{- end }}
{{- if and (or $v.ingress.dashboardHost $v.httpRoute.dashboardHostnames) (not $v.dashboard.enabled) }}
{{- fail "the dashboard has a host and dashboard.enabled is false: set dashboard.enabled=true" }}
{{- end }}
{{- end }}
