{{- /* Pod of a worker, for the Jobs of studies and for the Deployment. dict: root, restartPolicy */}}
{{- define "foldwise.workerPod" -}}
{{- $root := .root }}
{{- $v := $root.Values.worker }}
metadata:
  labels:
    {{- include "foldwise.podLabels" (dict "root" $root "component" "worker" "extra" $v.podLabels) | nindent 4 }}
  {{- with $v.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  restartPolicy: {{ .restartPolicy }}
  serviceAccountName: {{ include "foldwise.workerAccount" $root }}
  automountServiceAccountToken: false
  # Workers need no environment variables with the addresses of all Services.
  enableServiceLinks: false
  {{- include "foldwise.pullSecrets" $root | nindent 2 }}
  {{- with $v.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ $v.terminationGracePeriodSeconds }}
  {{- include "foldwise.podSecurity" $root | nindent 2 }}
  {{- with $v.resourceClaims }}
  resourceClaims:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: worker
      image: {{ include "foldwise.image" (dict "root" $root "image" $v.image) }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      # The last lines of the log tell the coordinator why a worker failed.
      terminationMessagePolicy: FallbackToLogsOnError
      args:
        - worker
        {{- if $v.threads }}
        - --threads={{ $v.threads }}
        {{- end }}
      {{- include "foldwise.containerSecurity" $root | nindent 6 }}
      env:
        {{- include "foldwise.writableEnv" $root | nindent 8 }}
        - {name: FOLDWISE_LOG, value: json}
        - {name: FOLDWISE_URL, value: {{ include "foldwise.url" $root | quote }}}
        - {name: FOLDWISE_TOKEN_FILE, value: /var/run/secrets/foldwise/token}
        - {name: FOLDWISE_CACHE_ROOT, value: /cache}
        - {name: FOLDWISE_ALIVE_FILE, value: /tmp/alive}
        - name: FOLDWISE_WORKER_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        {{- if include "foldwise.requiresGpu" $root }}
        # The pod must not train on the CPU while it holds a GPU.
        - {name: FOLDWISE_REQUIRE_GPU, value: "1"}
        {{- end }}
        {{- if $root.Values.artifacts.enabled }}
        - {name: FOLDWISE_MODELS, value: /artifacts/models}
        {{- end }}
        {{- $compiled := ternary "/compile-cache" "/tmp/cache" (not (empty $v.compileCache)) }}
        - {name: TORCHINDUCTOR_CACHE_DIR, value: {{ $compiled }}/inductor}
        - {name: TRITON_CACHE_DIR, value: {{ $compiled }}/triton}
        {{- with $v.image.digest }}
        - {name: FOLDWISE_IMAGE_DIGEST, value: {{ . | quote }}}
        {{- end }}
        {{- with $v.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $v.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      livenessProbe:
        # The training loop and every answer of the coordinator touch this file; with several GPUs it is as old as
        # that of the worker that made no progress for longest.
        exec:
          command: [sh, -c, test -n "$(find /tmp/alive -mmin -{{ div (add $v.hangSeconds 59) 60 }})"]
        initialDelaySeconds: 120
        periodSeconds: 60
        timeoutSeconds: 10
        failureThreshold: 3
      resources:
        {{- toYaml $v.resources | nindent 8 }}
      volumeMounts:
        - {name: cache, mountPath: /cache, readOnly: true}
        {{- if $root.Values.artifacts.enabled }}
        - {name: artifacts, mountPath: /artifacts}
        {{- end }}
        {{- if $v.compileCache }}
        - {name: compile-cache, mountPath: /compile-cache}
        {{- end }}
        - {name: token, mountPath: /var/run/secrets/foldwise, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        {{- with $v.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  {{- include "foldwise.placement" $v | nindent 2 }}
  {{- include "foldwise.affinity" (dict "root" $root "affinity" $v.affinity "component" "worker") | nindent 2 }}
  volumes:
    - name: cache
      persistentVolumeClaim: {claimName: {{ include "foldwise.cacheClaim" $root }}, readOnly: true}
    {{- if $root.Values.artifacts.enabled }}
    - name: artifacts
      persistentVolumeClaim: {claimName: {{ include "foldwise.artifactsClaim" $root }}}
    {{- end }}
    - name: token
      {{- if $root.Values.coordinator.tokenReview.enabled }}
      projected:
        sources:
          - serviceAccountToken:
              audience: {{ $root.Values.coordinator.tokenReview.audience }}
              expirationSeconds: 3600
              path: token
      {{- else }}
      secret:
        secretName: {{ include "foldwise.authSecret" $root }}
        items: [{key: worker-token, path: token}]
      {{- end }}
    {{- with $v.compileCache }}
    - name: compile-cache
      {{- toYaml . | nindent 6 }}
    {{- end }}
    - {name: tmp, emptyDir: {}}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ $v.shmSize }}}}
    {{- with $v.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- /* Not empty if the worker's pod gets a GPU, by a limit or by a resource claim, and extraEnv does not decide. */}}
{{- define "foldwise.requiresGpu" -}}
{{- $decided := false }}
{{- range .Values.worker.extraEnv }}
{{- if eq .name "FOLDWISE_REQUIRE_GPU" }}{{ $decided = true }}{{ end }}
{{- end }}
{{- if not $decided }}
{{- range $resource, $amount := .Values.worker.resources.limits }}
{{- if and (regexMatch "^(nvidia\\.com|amd\\.com|gpu\\.intel\\.com)/" $resource) (ne (toString $amount) "0") }}limit{{ end }}
{{- end }}
{{- if .Values.worker.resourceClaims }}claim{{ end }}
{{- end }}
{{- end }}

{{- /* Template of a study's Job. The coordinator adds name, labels, parallelism and FOLDWISE_STUDY. */}}
{{- define "foldwise.workerJob" -}}
{{- $v := .Values.worker }}
apiVersion: batch/v1
kind: Job
metadata:
  labels:
    {{- include "foldwise.podLabels" (dict "root" . "component" "worker") | nindent 4 }}
    {{- with $v.kueue.queueName }}
    kueue.x-k8s.io/queue-name: {{ . }}
    {{- end }}
  {{- with $v.kueue.minParallelism }}
  annotations:
    kueue.x-k8s.io/job-min-parallelism: {{ . | quote }}
  {{- end }}
spec:
  # A work queue has no completions: when the first worker exits with 0, the study is over.
  parallelism: {{ $v.parallelism }}
  backoffLimit: {{ $v.backoffLimit }}
  podReplacementPolicy: Failed
  ttlSecondsAfterFinished: {{ $v.ttlSecondsAfterFinished }}
  podFailurePolicy:
    rules:
      - action: Ignore
        onPodConditions: [{type: DisruptionTarget, status: "True"}]
      # Retry: the worker was told to stop, or the coordinator did not answer.
      - action: Ignore
        onExitCodes: {containerName: worker, operator: In, values: [75]}
      # Retry on another node: this one has no usable GPU, or cannot read the cache. It is no failure of the Job,
      # because other workers can be fine. If no worker of the study can run, the coordinator fails the Job.
      - action: Ignore
        onExitCodes: {containerName: worker, operator: In, values: [69]}
      # Settings, token or cache are wrong: a new pod would fail too.
      - action: FailJob
        onExitCodes: {containerName: worker, operator: In, values: [2, 64]}
  template:
    {{- include "foldwise.workerPod" (dict "root" . "restartPolicy" "Never") | nindent 4 }}
{{- end }}
