#!/bin/sh
# Lints and renders the chart, and sees it refuse what the binary would refuse.
set -eu
cd "$(dirname "$0")/../.."
chart=charts/outrigger
"$HELM" lint --strict "$chart"
"$HELM" template release "$chart" >/dev/null
"$HELM" template release "$chart" --set persistence.enabled=false,api.existingSecret=mine >/dev/null
for bad in api.port=80 api.port=NaN xds.port=-1 image.pullPolicy=Sometimes log.format=xml nosuch=1 persistence.size=lots; do
  if "$HELM" template release "$chart" --set "$bad" >/dev/null 2>&1; then
    echo "the chart accepts $bad" >&2
    exit 1
  fi
done
echo "chart: lints, renders, refuses bad values"
