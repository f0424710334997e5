{{/* Names of the release's objects. The release `outrigger` has its control plane at the Service outrigger-control. */}}
{{- define "outrigger.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "outrigger.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "outrigger.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "outrigger.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "outrigger.control" -}}
{{ include "outrigger.fullname" . }}-control
{{- end -}}

{{- define "outrigger.injector" -}}
{{ include "outrigger.fullname" . }}-injector
{{- end -}}

{{- define "outrigger.seccomp" -}}
{{ include "outrigger.fullname" . }}-seccomp
{{- end -}}

{{- define "outrigger.serviceAccount" -}}
{{- default (include "outrigger.control" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "outrigger.tokenSecret" -}}
{{- default (printf "%s-api-token" (include "outrigger.fullname" .)) .Values.api.existingSecret -}}
{{- end -}}

{{/* What never changes of an object: (list . COMPONENT). */}}
{{- define "outrigger.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "outrigger.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "outrigger.labels" -}}
{{- $root := index . 0 -}}
{{ include "outrigger.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: outrigger
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* (list . REPOSITORY TAG), with the registry in front of it when there is one. */}}
{{- define "outrigger.image" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ index . 1 }}:{{ index . 2 }}
{{- end -}}

{{- define "outrigger.tag" -}}
{{- default .Chart.AppVersion .Values.image.tag -}}
{{- end -}}

{{- define "outrigger.controlImage" -}}
{{- include "outrigger.image" (list . .Values.image.control (include "outrigger.tag" .)) -}}
{{- end -}}

{{- define "outrigger.proxyImage" -}}
{{- include "outrigger.image" (list . .Values.image.proxy (include "outrigger.tag" .)) -}}
{{- end -}}

{{/* Whether the control plane talks to the Kubernetes API at all: "true" or "". */}}
{{- define "outrigger.usesCluster" -}}
{{- if or (eq .Values.store.type "kubernetes") .Values.store.registry (and .Values.injector.enabled (not .Values.injector.certManager.enabled)) -}}
true
{{- end -}}
{{- end -}}

{{/* Why a pod of ours may run anywhere: nothing of it can be written, gained or kept. */}}
{{- define "outrigger.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}
