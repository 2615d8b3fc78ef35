{{/* Labels of everything; `component` and `root` are given. */}}
{{- define "countersign.labels" -}}
app.kubernetes.io/name: countersign
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
app.kubernetes.io/part-of: countersign
helm.sh/chart: "{{ .root.Chart.Name }}-{{ .root.Chart.Version }}"
{{- end -}}

{{/* What a Deployment and its Service select by. */}}
{{- define "countersign.selector" -}}
app.kubernetes.io/name: countersign
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- end -}}

{{- define "countersign.image" -}}
{{- $image := .Values.image -}}
{{- $repository := required "image.repository is needed: build an image with `make image`, push it to your registry and name it" $image.repository -}}
{{- if $image.digest -}}
{{ $repository }}@{{ $image.digest }}
{{- else -}}
{{ $repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* For the API server's `restricted` pod security level. */}}
{{- define "countersign.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "countersign.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* NAMESPACE/NAME of the mesh configuration. */}}
{{- define "countersign.meshConfigMap" -}}
{{ .Values.existingMeshConfigMap | default (printf "%s/istio" .Release.Namespace) }}
{{- end -}}

{{/* Environment of both processes. */}}
{{- define "countersign.env" -}}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef: {fieldPath: metadata.namespace}
- name: POD_NAME
  valueFrom:
    fieldRef: {fieldPath: metadata.name}
- name: POD_IP
  valueFrom:
    fieldRef: {fieldPath: status.podIP}
- name: COUNTERSIGN_REVISION
  value: {{ .root.Values.revision | quote }}
- name: COUNTERSIGN_MESH_CONFIG_MAP
  value: {{ include "countersign.meshConfigMap" .root | quote }}
- name: COUNTERSIGN_LOG
  value: {{ .root.Values.global.logging | quote }}
- name: COUNTERSIGN_LOG_FORMAT
  value: {{ ternary "json" "text" .root.Values.global.logAsJson }}
{{- range $name, $value := .process.env }}
- name: {{ $name | quote }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* Placement of the pods of both processes. */}}
{{- define "countersign.placement" -}}
{{- with .root.Values.global.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .root.Values.global.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.global.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .process.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .process.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Startup, readiness and liveness on the monitoring port. */}}
{{- define "countersign.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: monitoring}
  periodSeconds: 1
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /ready, port: monitoring}
  periodSeconds: 2
livenessProbe:
  httpGet: {path: /healthz, port: monitoring}
  periodSeconds: 10
  failureThreshold: 6
{{- end -}}
