// The shape of the dashboard by Grafana's own types. `board` is appended by `find_type_errors` of lab.dashboard.library.
import type { Dashboard, FieldConfig, Panel, TableFieldOptions, GraphFieldConfig } from '@grafana/schema';
import type { Options as BarGaugeOptions } from '@grafana/schema/dist/types/raw/composable/bargauge/panelcfg/x/types.gen';
import type { Options as StatOptions } from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen';
import type { Options as TableOptions } from '@grafana/schema/dist/types/raw/composable/table/panelcfg/x/types.gen';
import type { Options as SeriesOptions } from '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen';

// A file has the values of an enumeration as texts and numbers.
type Plain<T> = T extends string ? `${T}` : T extends number ? number
  : T extends ReadonlyArray<infer One> ? Array<Plain<One>>
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
type DeepPartial<T> = T extends ReadonlyArray<unknown> ? T
  : T extends object ? { [K in keyof T]?: DeepPartial<T[K]> } : T;

type Kind<Type extends string, Options, Custom> =
  Omit<Panel, 'type' | 'options' | 'fieldConfig'> & {
    type: Type;
    options: DeepPartial<Options>;
    fieldConfig: {
      defaults: Omit<FieldConfig, 'custom'> & { custom?: DeepPartial<Custom> };
      overrides: Array<{ matcher: { id: string; options: string }; properties: Array<{ id: string; value: any }> }>;
    };
  };
type Panels =
  | Kind<'stat', StatOptions, never>
  | Kind<'bargauge', BarGaugeOptions, never>
  | Kind<'table', TableOptions, TableFieldOptions>
  | Kind<'timeseries', SeriesOptions, GraphFieldConfig>;
export type Board = Plain<Omit<Dashboard, 'panels'> & { panels: Panels[] }>;
