// The shape of the dashboard by Grafana's own types.
// `find_type_errors` of lab.dashboard.library appends `board`.
import type { Dashboard, FieldConfig, Panel, TableFieldOptions, GraphFieldConfig } from '@grafana/schema';
import type * as bargauge from '@grafana/schema/dist/types/raw/composable/bargauge/panelcfg/x/types.gen';
import type * as stat from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen';
import type * as table from '@grafana/schema/dist/types/raw/composable/table/panelcfg/x/types.gen';
import type * as series from '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen';

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
      overrides: Array<{
        matcher: { id: string; options: string };
        properties: Array<{ id: string; value: any }>;
      }>;
    };
  };
type Panels =
  | Kind<'stat', stat.Options, never>
  | Kind<'bargauge', bargauge.Options, never>
  | Kind<'table', table.Options, TableFieldOptions>
  | Kind<'timeseries', series.Options, GraphFieldConfig>;
export type Board = Plain<Omit<Dashboard, 'panels'> & { panels: Panels[] }>;
