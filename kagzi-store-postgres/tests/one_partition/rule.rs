//! The rule itself: each table in a statement is narrowed to one partition by a constant, and all by the same one.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use sqlparser::ast::{
    Delete, Expr, FromTable, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Insert, Query,
    Select, SelectItem, SetExpr, Statement, TableFactor, TableObject, TableWithJoins, Update, Value, Visit,
    Visitor,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

/// What carries a partition.
pub const TABLES: [&str; 5] = ["runs", "payloads", "steps", "operations", "queues"];

/// Who sends a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The store: on a cluster the statement is looked at by the coordinator.
    Store,
    /// A function, which runs on the node of its partition.
    Function,
}

/// What a statement that keeps the rule touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub tables: BTreeSet<String>,
    pub functions: BTreeSet<String>,
    /// The constants by which partitions are named.
    constants: BTreeSet<String>,
}

impl Touched {
    /// Whether partitions are named by this constant.
    pub fn names(&self, constant: &str) -> bool {
        self.constants.contains(constant)
    }
}

/// What one statement touches, or why it breaks the rule.
pub fn check(sql: &str, from: From) -> Result<Touched, String> {
    // How strong a lock is makes no difference here, and the parser knows one strength.
    let sql = sql.replace("FOR NO KEY UPDATE", "FOR UPDATE");
    let statements = Parser::parse_sql(&PostgreSqlDialect {}, &sql)
        .map_err(|error| format!("cannot be read: {error}\n{sql}"))?;
    let [statement] = statements.as_slice() else { return Err(format!("more than one statement:\n{sql}")) };
    let mut looked = Look::default();
    if let ControlFlow::Break(why) = statement.visit(&mut looked) {
        return Err(format!("{why}\n{sql}"));
    }
    let touched = looked.0;
    if touched.constants.len() > 1 {
        return Err(format!("names several partitions: {:?}\n{sql}", touched.constants));
    }
    if from == From::Store && !touched.functions.is_empty() && !is_delegable(statement) {
        return Err(format!(
            "calls {:?} in a form that Citus does not send to a node\n{sql}",
            touched.functions
        ));
    }
    Ok(touched)
}

#[derive(Default)]
struct Look(Touched);

impl Visitor for Look {
    type Break = String;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<String> {
        self.body(&query.body)
    }

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<String> {
        match statement {
            // Their queries are looked at by themselves.
            Statement::Query(_) => ControlFlow::Continue(()),
            Statement::Insert(insert) => self.insert(insert),
            Statement::Update(Update { table, assignments, selection, .. }) => {
                if assignments.iter().any(|one| one.target.to_string() == "partition") {
                    return ControlFlow::Break("moves rows to another partition".to_owned());
                }
                self.narrowed(std::slice::from_ref(table), selection.as_ref())
            }
            Statement::Delete(Delete { from, selection, .. }) => {
                let (FromTable::WithFromKeyword(tables) | FromTable::WithoutKeyword(tables)) = from;
                self.narrowed(tables, selection.as_ref())
            }
            _ => ControlFlow::Break("neither reads nor writes rows".to_owned()),
        }
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<String> {
        match factor {
            TableFactor::Table { name, args: Some(args), .. } => {
                self.call(&name.to_string(), args.args.first())
            }
            TableFactor::Function { name, args, .. } => self.call(&name.to_string(), args.first()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<String> {
        match expr {
            Expr::Function(Function { name, args: FunctionArguments::List(list), .. }) => {
                self.call(&name.to_string(), list.args.first())
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Look {
    fn body(&mut self, body: &SetExpr) -> ControlFlow<String> {
        match body {
            SetExpr::Select(select) => self.narrowed(&select.from, select.selection.as_ref()),
            SetExpr::SetOperation { left, right, .. } => {
                self.body(left)?;
                self.body(right)
            }
            // Visited by themselves.
            SetExpr::Query(_)
            | SetExpr::Values(_)
            | SetExpr::Insert(_)
            | SetExpr::Update(_)
            | SetExpr::Delete(_) => ControlFlow::Continue(()),
            _ => ControlFlow::Break("is a kind of query that this test does not know".to_owned()),
        }
    }

    /// Every table of ours in `from` has a condition of its own among those that hold in any case.
    fn narrowed(&mut self, from: &[TableWithJoins], condition: Option<&Expr>) -> ControlFlow<String> {
        let factors = from.iter().flat_map(|one| {
            std::iter::once(&one.relation).chain(one.joins.iter().map(|join| &join.relation))
        });
        let ours: Vec<(String, String)> = factors.filter_map(table_and_name).collect();
        let mut conditions = Vec::new();
        conjuncts(condition, &mut conditions);
        for (table, name) in &ours {
            let alone = ours.len() == 1;
            let constant = conditions.iter().find_map(|one| constant_of(one, name, alone));
            let Some(constant) = constant else {
                return ControlFlow::Break(format!("touches {table} without `partition = ` a constant"));
            };
            self.0.tables.insert(table.clone());
            self.0.constants.insert(constant);
        }
        ControlFlow::Continue(())
    }

    fn insert(&mut self, insert: &Insert) -> ControlFlow<String> {
        let TableObject::TableName(name) = &insert.table else {
            return ControlFlow::Break("inserts into what is no table".to_owned());
        };
        let table = name.to_string();
        if !TABLES.contains(&table.as_str()) {
            return ControlFlow::Continue(());
        }
        let place = insert.columns.iter().position(|column| column.to_string() == "partition");
        let Some(place) = place else {
            return ControlFlow::Break(format!("inserts into {table} without a partition"));
        };
        let constants: Option<Vec<String>> = match insert.source.as_deref().map(|query| query.body.as_ref()) {
            Some(SetExpr::Values(values)) => {
                values.rows.iter().map(|row| constant(row.content.get(place)?)).collect()
            }
            Some(SetExpr::Select(select)) => selected(select, place).map(|one| vec![one]),
            _ => None,
        };
        let Some(constants) = constants else {
            return ControlFlow::Break(format!("inserts into {table} under a partition that is no constant"));
        };
        self.0.tables.insert(table);
        self.0.constants.extend(constants);
        ControlFlow::Continue(())
    }

    /// Our functions have their partition in front.
    fn call(&mut self, name: &str, first: Option<&FunctionArg>) -> ControlFlow<String> {
        if !name.starts_with("kagzi_") || name == "kagzi_end_of_time" {
            return ControlFlow::Continue(());
        }
        let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(first))) = first else {
            return ControlFlow::Break(format!("calls {name} without a partition"));
        };
        let Some(constant) = constant(first) else {
            return ControlFlow::Break(format!("calls {name} with a partition that is no constant"));
        };
        self.0.functions.insert(name.to_owned());
        self.0.constants.insert(constant);
        ControlFlow::Continue(())
    }
}

/// A table of ours, and by which name its columns go.
fn table_and_name(factor: &TableFactor) -> Option<(String, String)> {
    let TableFactor::Table { name, alias, args: None, .. } = factor else { return None };
    let table = name.to_string();
    let alias = alias.as_ref().map_or_else(|| table.clone(), |alias| alias.name.value.clone());
    TABLES.contains(&table.as_str()).then_some((table, alias))
}

/// What holds of every row: a condition is cut at its ANDs and never at an OR.
fn conjuncts<'a>(condition: Option<&'a Expr>, all: &mut Vec<&'a Expr>) {
    match condition {
        None => {}
        Some(Expr::Nested(inner)) => conjuncts(Some(inner), all),
        Some(Expr::BinaryOp { left, op: sqlparser::ast::BinaryOperator::And, right }) => {
            conjuncts(Some(left), all);
            conjuncts(Some(right), all);
        }
        Some(other) => all.push(other),
    }
}

/// The constant in `name.partition = constant`; without the name where there is one table only.
fn constant_of(condition: &Expr, name: &str, alone: bool) -> Option<String> {
    let Expr::BinaryOp { left, op: sqlparser::ast::BinaryOperator::Eq, right } = condition else {
        return None;
    };
    let is_partition = match left.as_ref() {
        Expr::Identifier(column) => alone && column.value == "partition",
        Expr::CompoundIdentifier(parts) => {
            matches!(parts.as_slice(), [table, column] if table.value == name && column.value == "partition")
        }
        _ => false,
    };
    if is_partition { constant(right) } else { None }
}

/// A parameter, a number, or the partition that a function was called with.
fn constant(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Nested(inner) => constant(inner),
        Expr::Cast { expr, .. } => constant(expr),
        Expr::Value(value) => match &value.value {
            Value::Placeholder(name) => Some(name.clone()),
            Value::Number(number, _) => Some(number.clone()),
            _ => None,
        },
        Expr::Identifier(name) if name.value == "p_partition" => Some(name.value.clone()),
        _ => None,
    }
}

fn selected(select: &Select, place: usize) -> Option<String> {
    match select.projection.get(place)? {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => constant(expr),
        _ => None,
    }
}

/// Citus sends a call to the node of its partition if the call is all that the query selects from, or all that it
/// selects.
fn is_delegable(statement: &Statement) -> bool {
    let Statement::Query(query) = statement else { return false };
    let SetExpr::Select(select) = query.body.as_ref() else { return false };
    let no_more = query.with.is_none() && query.order_by.is_none() && select.selection.is_none();
    no_more
        && match (select.from.as_slice(), select.projection.as_slice()) {
            ([], [SelectItem::UnnamedExpr(Expr::Function(_))]) => true,
            ([one], _) => one.joins.is_empty() && is_call(&one.relation),
            _ => false,
        }
}

fn is_call(factor: &TableFactor) -> bool {
    matches!(factor, TableFactor::Table { args: Some(_), .. } | TableFactor::Function { .. })
}
