// What the server's page does with the response of a query before a panel draws it: transformations,
// field options and overrides, with the functions of @grafana/data.
import {
  applyFieldOverrides, cacheFieldDisplayNames, createTheme, DataFrame, dataLinksOverrideProcessor, dateTime,
  displayNameOverrideProcessor, FieldConfigOptionsRegistry, getValueFormats,
  identityOverrideProcessor, numberOverrideProcessor, Registry, standardTransformers,
  standardTransformersRegistry, stringOverrideProcessor, thresholdsOverrideProcessor, TimeRange,
  toDataFrame, transformDataFrame, unitOverrideProcessor, valueMappingsOverrideProcessor,
} from '@grafana/data';

export interface Input {
  board: any;
  // Of each panel, by its id: the frames of its queries.
  frames: Record<string, Array<{ refId: string; fields: any[] }>>;
  nowMs: number;
  fromMs: number;
}

// The options of a field that every panel has.
const STANDARD: Record<string, any> = {
  unit: unitOverrideProcessor,
  min: numberOverrideProcessor,
  max: numberOverrideProcessor,
  decimals: numberOverrideProcessor,
  displayName: displayNameOverrideProcessor,
  description: stringOverrideProcessor,
  color: identityOverrideProcessor,
  noValue: stringOverrideProcessor,
  links: dataLinksOverrideProcessor,
  mappings: valueMappingsOverrideProcessor,
  thresholds: thresholdsOverrideProcessor,
};

// Those that a kind of panel adds, by the type of its field options in @grafana/schema.
const CUSTOM: Record<string, string[]> = {
  stat: [],
  bargauge: [],
  table: [
    'align', 'cellOptions', 'filterable', 'footer', 'hideFrom', 'hideHeader', 'inspect', 'minWidth',
    'sortable', 'width', 'wrapHeaderText',
  ],
  timeseries: [
    'axisLabel', 'axisPlacement', 'axisSoftMax', 'axisSoftMin', 'drawStyle', 'fillOpacity', 'hideFrom',
    'insertNulls', 'lineInterpolation', 'lineWidth', 'pointSize', 'showPoints', 'spanNulls', 'stacking',
    'thresholdsStyle',
  ],
};

export function registryOf(type: string): FieldConfigOptionsRegistry {
  const item = (id: string, path: string, process: any, isCustom: boolean) => ({
    id, path, name: id, process, isCustom, shouldApply: () => true,
    editor: () => null, override: () => null,
  });
  return new Registry<any>(() => [
    ...Object.entries(STANDARD).map(([id, process]) => item(id, id, process, false)),
    ...(CUSTOM[type] ?? []).map((id) => item(`custom.${id}`, id, identityOverrideProcessor, true)),
  ]) as FieldConfigOptionsRegistry;
}

// Two of the library's transformations are the same one under two names.
const transformers = new Map(Object.values(standardTransformers).map((one: any) => [one.id, one]));
standardTransformersRegistry.setInit(() =>
  [...transformers.values()].map((one: any) => ({
    id: one.id, name: one.name, transformation: async () => one, editor: () => null,
    imageDark: '', imageLight: '',
  })) as any
);

// What the server adds to a panel that does not state it, by the defaults of its kind.
const DEFAULTS: Record<string, any> = {
  stat: {
    color: 'thresholds',
    options: { textMode: 'auto', colorMode: 'value', graphMode: 'area', justifyMode: 'auto', wideLayout: true },
  },
  bargauge: {
    color: 'thresholds',
    options: {
      displayMode: 'gradient', namePlacement: 'auto', showUnfilled: true, valueMode: 'color', sizing: 'auto',
      minVizHeight: 16, minVizWidth: 8, maxVizHeight: 300,
    },
  },
  table: { color: 'thresholds', options: { showHeader: true, cellHeight: 'sm' } },
  timeseries: { color: 'palette-classic', options: {} },
};
const THRESHOLDS = { mode: 'absolute', steps: [{ color: 'green', value: null }, { color: 'red', value: 80 }] };

// Return the panel as the server has it after it was loaded.
export function withDefaults(panel: any): any {
  const { color, options } = DEFAULTS[panel.type];
  const added = { color: { mode: color }, thresholds: THRESHOLDS };
  const defaults = structuredClone({ ...added, ...panel.fieldConfig.defaults });
  defaults.thresholds.steps[0].value = -Infinity; // JSON has null
  return {
    ...panel,
    options: { ...options, ...panel.options },
    fieldConfig: { defaults, overrides: structuredClone(panel.fieldConfig.overrides) },
  };
}

// Let the present be the fleet's. Time goes on: the library waits by it.
export const fixNow = (nowMs: number) => {
  const started = performance.now();
  Date.now = () => nowMs + Math.round(performance.now() - started);
};

export const timeRange = (input: Input): TimeRange => {
  const [from, to] = [dateTime(input.fromMs), dateTime(input.nowMs)];
  return { from, to, raw: { from, to } };
};

export const themeOf = (mode: 'light' | 'dark') => createTheme({ colors: { mode } });

export async function prepare(panel: any, input: Input, mode: 'light' | 'dark'): Promise<DataFrame[]> {
  const received = input.frames[panel.id].map((frame) => {
    const fields = frame.fields.map((field) => ({ ...field, config: {} }));
    return toDataFrame({ ...frame, fields });
  });
  const data = await new Promise<DataFrame[]>((resolve, reject) =>
    transformDataFrame(panel.transformations ?? [], received, { interpolate: (text: string) => text })
      .subscribe({ next: resolve, error: reject })
  );
  const shown = applyFieldOverrides({
    data,
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: registryOf(panel.type),
    replaceVariables: (text) => text,
    theme: themeOf(mode),
    timeZone: 'utc',
  });
  cacheFieldDisplayNames(shown); // the panels of the server read the names from there
  return shown;
}

const UNITS = new Set(getValueFormats().flatMap((group) => group.submenu.map((unit) => unit.value)));

// What a reader of the file would not see, because Grafana ignores it without a message.
export function problemsOf(panel: any, input: Input, shown: DataFrame[]): string[] {
  const found: string[] = [];
  const registry = registryOf(panel.type);
  const { defaults, overrides } = panel.fieldConfig;
  const { custom = {}, ...standard } = defaults;
  const names = shown.flatMap((frame) => frame.fields.map((field) => field.name));
  const set = [
    ...Object.keys(standard).map((id) => ({ id, value: standard[id] })),
    ...Object.keys(custom).map((id) => ({ id: `custom.${id}`, value: custom[id] })),
    ...overrides.flatMap((one: any) => one.properties),
  ];
  for (const { id, value } of set) {
    if (!registry.getIfExists(id)) {
      found.push(`unknown field option ${id}`);
    } else if (id === 'unit' && !UNITS.has(value)) {
      found.push(`unknown unit ${value}`);
    }
  }
  for (const { matcher } of overrides) {
    if (matcher.id === 'byName' && !names.includes(matcher.options)) {
      found.push(`override of a missing field ${matcher.options}`);
    }
  }
  const received = input.frames[panel.id].flatMap((frame) => frame.fields.map((field) => field.name));
  for (const { id, options } of panel.transformations ?? []) {
    if (!standardTransformersRegistry.getIfExists(id)) {
      found.push(`unknown transformation ${id}`);
    }
    const parts = [options.indexByName, options.renameByName, options.excludeByName];
    for (const name of new Set(parts.flatMap((part) => Object.keys(part ?? {})))) {
      if (!received.includes(name)) {
        found.push(`transformation of a missing column ${name}`);
      }
    }
  }
  for (const { displayName } of panel.options.sortBy ?? []) {
    const titles = shown.flatMap((frame) => frame.fields.map((one) => one.config.displayName ?? one.name));
    if (!titles.includes(displayName)) {
      found.push(`sorted by a missing column ${displayName}`);
    }
  }
  const json = input.frames[panel.id].flatMap((frame) => frame.fields.filter(({ type }) => type === 'other'));
  return [...found, ...json.map(({ name }) => `a column given as JSON: ${name}`)];
}
