// Print as JSON what a reader sees of each panel: texts with their units, columns, colors.
import { readFileSync } from 'node:fs';

import {
  DataFrame, FieldType, formattedValueToString, getFieldDisplayName, getFieldDisplayValues,
} from '@grafana/data';

import { fixNow, Input, prepare, problemsOf, themeOf, withDefaults } from './panels';

const input: Input = JSON.parse(readFileSync(0, 'utf8'));
fixNow(input.nowMs);

function values(panel: any, data: DataFrame[]) {
  const found = getFieldDisplayValues({
    data,
    fieldConfig: panel.fieldConfig,
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: (text) => text,
    theme: themeOf('light'),
    timeZone: 'utc',
  });
  return found.map(({ display }) => ({
    title: display.title ?? '', text: formattedValueToString(display), color: display.color,
  }));
}

function cells(frame: DataFrame) {
  const columns = frame.fields
    .filter((field) => !field.config.custom?.hideFrom?.viz)
    .map((field) => {
      const shown = field.values.map((value: unknown) => field.display!(value));
      return {
        title: getFieldDisplayName(field, frame),
        texts: shown.map(formattedValueToString),
        colors: shown.map((one) => one.color ?? ''),
      };
    });
  return { columns };
}

const series = (frame: DataFrame) =>
  frame.fields
    .filter((field) => field.type === FieldType.number)
    .map((field) => ({
      title: getFieldDisplayName(field, frame),
      texts: field.values.map((value: unknown) => formattedValueToString(field.display!(value))),
    }));

async function main() {
  const described = [];
  for (const panel of input.board.panels.map(withDefaults)) {
    const data = await prepare(panel, input, 'light');
    const one: any = { title: panel.title, problems: problemsOf(panel, input, data) };
    if (panel.type === 'table') {
      Object.assign(one, cells(data[0]));
    } else if (panel.type === 'timeseries') {
      one.series = data.flatMap(series);
    } else {
      one.values = values(panel, data);
    }
    described.push(one);
  }
  process.stdout.write(JSON.stringify(described));
}

void main();
