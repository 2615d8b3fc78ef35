{{/* Whose a definition in the cluster is: "" if there is none, "own" if this release put it there, else its owner. */}}
{{- define "countersign-crds.owner" -}}
{{- $live := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" .name -}}
{{- if $live -}}
{{- $annotations := $live.metadata.annotations | default dict -}}
{{- $labels := $live.metadata.labels | default dict -}}
{{- $release := get $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- $ours := eq (get $labels "app.kubernetes.io/part-of") "countersign" -}}
{{- if and $ours (eq $release .root.Release.Name) (eq $namespace .root.Release.Namespace) -}}
own
{{- else if $release -}}
release {{ $namespace }}/{{ $release }}
{{- else if $ours -}}
countersign, not by Helm
{{- else -}}
somebody else
{{- end -}}
{{- end -}}
{{- end -}}
