{{/* The release, short enough that KEDA and Kubernetes can append to it. */}}
{{- define "cloudseg.name" -}}
{{- .Release.Name | trunc 30 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels of every object. Call with (dict "root" $ "component" "worker"). */}}
{{- define "cloudseg.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "cloudseg.selector" . }}
{{- end -}}

{{- define "cloudseg.selector" -}}
app.kubernetes.io/name: cloudseg
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* The image of the CPU or GPU pods. Call with (dict "root" $ "gpu" false). */}}
{{- define "cloudseg.image" -}}
{{- $image := .root.Values.image -}}
{{- $tag := ternary $image.gpuTag $image.cpuTag .gpu -}}
{{- $digest := ternary $image.gpuDigest $image.cpuDigest .gpu -}}
{{- $repository := required "image.repository: where did you push the images that infra/images/Dockerfile builds?" $image.repository -}}
{{- if $digest }}{{ $repository }}@{{ $digest }}{{ else }}{{ $repository }}:{{ $tag }}{{ end -}}
{{- end -}}

{{/* What "restricted" of the pod security standards asks for, and a read-only file system. */}}
{{- define "cloudseg.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "cloudseg.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{/* A pool's queue as cloudseg names it: sqs://REGION/NAME. Call with (dict "root" $ "pool" "cpu"). */}}
{{- define "cloudseg.queue" -}}
{{- if not (hasKey .root.Values.pools .pool) }}{{ fail (printf "there is no pool %q; there are: %s" .pool (keys .root.Values.pools | sortAlpha | join ", ")) }}{{ end -}}
{{- $pool := get .root.Values.pools .pool -}}
{{- if not $pool.enabled }}{{ fail (printf "pool %q is not enabled: nobody would run its tasks" .pool) }}{{ end -}}
sqs://{{ include "cloudseg.region" .root }}/{{ base (include "cloudseg.queueUrl" .) }}
{{- end -}}

{{- define "cloudseg.queueUrl" -}}
{{- required (printf "pools.%s.queueUrl: which queue? terraform output queue_urls says" .pool) (get .root.Values.pools .pool).queueUrl -}}
{{- end -}}

{{- define "cloudseg.region" -}}
{{- required "aws.region: where are the queues?" .Values.aws.region -}}
{{- end -}}

{{/* Variables of every container. Call with (dict "root" $ "account" $.Values.serviceAccounts.worker). */}}
{{- define "cloudseg.env" -}}
# tensorstore reads the first, boto3 the second.
- name: AWS_REGION
  value: {{ include "cloudseg.region" .root | quote }}
- name: AWS_DEFAULT_REGION
  value: {{ include "cloudseg.region" .root | quote }}
{{- if and (eq .root.Values.aws.identity "webIdentity") .account.awsRoleArn }}
- name: AWS_ROLE_ARN
  value: {{ .account.awsRoleArn | quote }}
- name: AWS_WEB_IDENTITY_TOKEN_FILE
  value: /var/run/secrets/aws/token
{{- end }}
{{- end -}}

{{- define "cloudseg.mounts" -}}
- { name: tmp, mountPath: /tmp }
{{- if and (eq .root.Values.aws.identity "webIdentity") .account.awsRoleArn }}
- { name: aws-token, mountPath: /var/run/secrets/aws, readOnly: true }
{{- end }}
{{- end -}}

{{/* Call with the account, and tmpGi. */}}
{{- define "cloudseg.volumes" -}}
- name: tmp
  emptyDir: { sizeLimit: {{ .tmpGi }}Gi }
{{- if and (eq .root.Values.aws.identity "webIdentity") .account.awsRoleArn }}
- name: aws-token
  projected:
    sources:
      - serviceAccountToken: { audience: sts.amazonaws.com, expirationSeconds: 3600, path: token }
{{- end }}
{{- end -}}

{{/* Where a pod may go, and what it tolerates. Call with (dict "nodeSelector" ... "tolerations" ...). */}}
{{- define "cloudseg.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "cloudseg.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}
