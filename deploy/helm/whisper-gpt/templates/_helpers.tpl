{{- define "whisper-gpt.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "whisper-gpt.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "whisper-gpt.labels" -}}
{{ include "whisper-gpt.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* The Secret that holds the keys; empty: there are none. */ -}}
{{- define "whisper-gpt.keys" -}}
{{- if and .Values.apiKeys.values .Values.apiKeys.existingSecret -}}
{{- fail "apiKeys: either values or existingSecret" -}}
{{- end -}}
{{- if .Values.apiKeys.values -}}{{ include "whisper-gpt.name" . }}-keys{{- else -}}{{ .Values.apiKeys.existingSecret }}{{- end -}}
{{- end -}}

{{- /*
Seconds from the beginning of preStop until the pod is killed: the balancers' time, the longer of the two drains, and
the ten seconds more that docs/operations.md asks for.
*/ -}}
{{- define "whisper-gpt.grace" -}}
{{- $settings := .Values.settings -}}
{{- $drain := max (get $settings "drain_seconds" | default 30 | float64 | ceil | int) (get $settings "drain_grace_seconds" | default 5 | float64 | ceil | int) -}}
{{- add .Values.preStopSeconds $drain 10 -}}
{{- end -}}
