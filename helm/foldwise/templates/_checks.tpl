{{- /* Checks that the schema cannot express. Each fails with one sentence before anything is installed. */}}
{{- define "foldwise.checks" -}}
{{- $v := .Values }}
{{- if and (not $v.postgresql.enabled) (not $v.externalDatabase.existingSecret) }}
{{- fail "postgresql.enabled is false and externalDatabase.existingSecret is empty: set externalDatabase.existingSecret to the name of a Secret with the database URL" }}
{{- end }}
{{- if and $v.postgresql.enabled $v.externalDatabase.existingSecret }}
{{- fail (printf "externalDatabase.existingSecret is %q and postgresql.enabled is true: set postgresql.enabled=false to use the external database" $v.externalDatabase.existingSecret) }}
{{- end }}
{{- range $name, $volume := dict "cache" $v.cache "artifacts" $v.artifacts }}
{{- $used := or (eq $name "cache") $v.artifacts.enabled }}
{{- if and $used (not $volume.existingClaim) (not $v.cache.singleNode) (not (or (has "ReadWriteMany" $volume.accessModes) (has "ReadOnlyMany" $volume.accessModes))) }}
{{- fail (printf "%s.accessModes is %v, so only one node can mount the volume, but coordinator, workers and preprocessing Jobs may run on several: use a storage class with ReadWriteMany, or set cache.singleNode=true to keep all of them on one node" $name $volume.accessModes) }}
{{- end }}
{{- end }}
{{- if and $v.cache.singleNode (gt (int $v.coordinator.replicas) 1) }}
{{- fail (printf "coordinator.replicas is %d and cache.singleNode is true: two coordinators on one node fail together; set coordinator.replicas=1" (int $v.coordinator.replicas)) }}
{{- end }}
{{- if and $v.worker.deployment.keda.enabled (not $v.worker.deployment.enabled) }}
{{- fail "worker.deployment.keda.enabled is true and worker.deployment.enabled is false: KEDA has no Deployment to scale; set worker.deployment.enabled=true" }}
{{- end }}
{{- if gt (int $v.worker.deployment.keda.minReplicas) (int $v.worker.deployment.keda.maxReplicas) }}
{{- fail (printf "worker.deployment.keda.minReplicas is %d and worker.deployment.keda.maxReplicas is %d: set minReplicas to maxReplicas or less" (int $v.worker.deployment.keda.minReplicas) (int $v.worker.deployment.keda.maxReplicas)) }}
{{- end }}
{{- if and $v.worker.kueue.minParallelism (not $v.worker.kueue.queueName) }}
{{- fail (printf "worker.kueue.minParallelism is %d and worker.kueue.queueName is empty: partial admission needs a queue; set worker.kueue.queueName" (int $v.worker.kueue.minParallelism)) }}
{{- end }}
{{- $names := list }}
{{- range $v.preprocessing.datasets }}
{{- if has .name $names }}
{{- fail (printf "preprocessing.datasets lists the name %q twice: rename one of them" .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- if and $v.ingress.enabled (not $v.ingress.host) }}
{{- fail "ingress.enabled is true and ingress.host is empty: set ingress.host to the host name of the coordinator" }}
{{- end }}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled is true and httpRoute.parentRefs is empty: list at least one Gateway" }}
{{- end }}
{{- if and (or $v.ingress.dashboardHost $v.httpRoute.dashboardHostnames) (not $v.dashboard.enabled) }}
{{- fail "dashboard.enabled is false, but ingress.dashboardHost or httpRoute.dashboardHostnames is set: set dashboard.enabled=true, or remove the host name" }}
{{- end }}
{{- end }}
